"""The measuring loop: sends what is due, reads what has come, stamps both, and parses nothing but heads.

A read goes straight into the current segment's buffer with the kernel's stamp of its arrival; whether an answer
is whole is told from its framing's last bytes alone. Between reads the loop looks at the clock, so that a request
that falls due amid a burst of answers is not kept waiting by them.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tokenweir.bench.engine import framing, stamps
from tokenweir.bench.engine.answers import BAD, WHOLE, Answers
from tokenweir.bench.engine.connections import Connections, Mode
from tokenweir.bench.engine.live import LiveCounters
from tokenweir.bench.engine.pacing import Pacing
from tokenweir.bench.engine.plan import WorkerPlan, load_payloads
from tokenweir.bench.engine.segment import LINE, End, Outlet, Segment
from tokenweir.bench.engine.waking import EMPTY_POLL_NS, Doze, Spin
from tokenweir.poller import NEVER, READ, WRITE, Poller

_TICK_NS: Final = 100_000_000
_LATE_NS: Final = 1_000_000_000
"""How often, at the least, open requests are walked for those that are late; the walk is a pause in the loop."""
_FLUSH_NS: Final = 250_000_000
_REST_NS: Final = 100_000_000
"""How long a closed loop's slot rests after a connection could not be made, lest a dead server be hammered."""
_WARM_NS: Final = 10_000_000_000
_BURST: Final = 32
"""Requests sent in a row before the loop reads again."""
_SHORT: Final = 8
"""A read below this may be a part of the last chunk."""
_CONNECTING: Final = 128
"""Connections being made at once: accept queues are finite."""

_unpack_stamp = stamps.STAMP.unpack
_line = LINE.pack
_HEAD: Final = Mode.HEAD
_WHOLE: Final = End.WHOLE


class Capture:
    """One worker's exchange with the server for one load point. ``run`` returns when all is answered or given up."""

    def __init__(
        self,
        plan: WorkerPlan,
        *,
        poller: Poller,
        outlet: Outlet,
        payload_of: Sequence[int],
        live: LiveCounters,
        control_fd: int,
    ) -> None:
        self._plan = plan
        self._poller = poller
        self._outlet = outlet
        self._payload_of = payload_of
        self._cycle = len(payload_of)
        self._payloads = load_payloads(plan.payloads_fd, Path(plan.payload_ends))
        self._live = live
        self._connections = Connections(plan, poller)
        self._segment = outlet.first
        self._pacing = Pacing(start_ns=0, total=0, schedule=None, slots=0)
        self.spin = Spin()
        self._waiting: deque[tuple[int, int]] = deque()
        size = len(self._connections.mode)
        self._request: list[int] = [-1] * size
        self._since: list[int] = [0] * size
        self._answers = Answers(self._connections.mode)
        self._unsent: dict[int, tuple[memoryview | bytes, int]] = {}
        self._offset_ns = 0
        self._tick_ns = self._flush_ns = self._late_ns = 0
        self._stop_ns = NEVER
        self._cancelled = False
        self._doze = Doze()
        self._reads = 0
        self.unstamped = 0
        self.retried = 0
        self._connections.reserve(control_fd, Mode.CONTROL)
        poller.watch(control_fd, READ)
        if poller.timer_fd >= 0:
            self._connections.reserve(poller.timer_fd, Mode.TIMER)

    def warm_up(self) -> int:
        """Open connections ahead of need; return an errno when all are refused, else 0."""
        deadline = time.monotonic_ns() + min(self._plan.timeout_ns, _WARM_NS)
        connections, code = self._connections, 0
        wanted = self._plan.warm_connections
        while time.monotonic_ns() < deadline and not code:
            while wanted and connections.connecting < _CONNECTING and not code:
                code = connections.open()
                wanted -= 1
            if not connections.connecting:
                break
            code = code or self._advance_connections(deadline)
        # A server that is merely slow to accept is left to the requests, whose timeouts are on record.
        return 0 if connections.idle else code

    def run(self, start_ns: int, schedule: Sequence[int] | None) -> None:
        """Send and read until nothing is left to do. ``schedule`` holds nanoseconds after the start."""
        plan = self._plan
        # An open loop's schedule is already cut at the duration, and all of it is sent, however late.
        stop_ns = NEVER if plan.duration_ns is None or not plan.slots else start_ns + plan.duration_ns
        total = NEVER if plan.repeat else self._cycle
        self._pacing = Pacing(
            start_ns=start_ns, total=total, schedule=schedule, slots=plan.slots, stop_ns=stop_ns
        )
        self._stop_ns = stop_ns
        self.spin = Spin(None if plan.slots else schedule)
        self._measure_offset()
        self._loop()
        self._live.publish(time.monotonic_ns(), self._pacing.next)
        self._connections.close_all()
        self._measure_offset()
        self._outlet.put(self._segment)
        self._outlet.finish()

    def _loop(self) -> None:  # noqa: C901, PLR0912, PLR0915 - one function: a call per read costs a fifth of the read
        clock = time.monotonic_ns
        pacing, doze, spin, wait = self._pacing, self._doze, self.spin, self._poller.wait
        mode, receive, request = self._connections.mode, self._connections.receive, self._request
        answers, outlet, ends = self._answers, self._outlet, framing.LAST_CHUNK_ENDS
        left, tails, keep, usual = answers.left, answers.tails, answers.keep, answers.usual
        heads, spoilt = answers.heads, answers.spoilt
        # A class's attribute costs a look-up each time.
        chunked, head, counted = Mode.CHUNKED, Mode.HEAD, Mode.LENGTH
        segment = self._segment
        view, raw, used = segment.view, segment.slot, 0
        while not self._done():
            now = clock()
            if now >= self._tick_ns:
                segment.used = used
                self._tick(now)
                if segment is not self._segment:
                    segment = self._segment
                    view, raw, used = segment.view, segment.slot, 0
            if now >= pacing.due_ns:
                self._dispatch(now)
                now = clock()
            if doze.seconds and pacing.due_ns > now + doze.room_ns + spin.lead_ns:
                time.sleep(doze.seconds)
            awake = 0 < pacing.due_ns - now < spin.lead_ns
            if outlet.spilling and not awake:
                outlet.step()
            events = wait(0 if awake else min(pacing.due_ns - spin.lead_ns, self._tick_ns))
            if awake and not events:
                spin.spent_ns += min(clock() - now, EMPTY_POLL_NS)
            for fd, ready in events:
                kind = mode[fd]
                if kind <= 0:
                    self._attend(fd, kind, ready)
                    continue
                try:
                    count, ancillary, _, _ = receive[fd]((view[used:],), 64)
                except BlockingIOError:
                    continue
                except OSError:
                    self._broken(fd, End.RESET)
                    continue
                if not count:
                    self._broken(fd, End.EOF)
                    continue
                stamp = ancillary[0][2] if ancillary else self._user_stamp()
                end = used + count
                segment.requests.append(request[fd])
                segment.offsets.append(end)
                segment.stamps += stamp
                if kind == chunked:
                    if count < _SHORT or fd in tails or raw[end - 4 : end] in ends:
                        self._end(fd, answers.tail(fd, raw[used:end]), stamp)
                elif kind == head:
                    like = usual.get(count)
                    if like is not None and raw[used : used + len(like)] == like and not (heads or spoilt):
                        keep[fd] = True
                        self._whole(fd, stamp)
                    else:
                        self._end(fd, answers.head(fd, raw[used:end]), stamp)
                elif kind == counted:
                    left[fd] -= count
                    if left[fd] <= 0:
                        self._whole(fd, stamp)
                used = end
                if used > segment.limit:
                    segment.used = used
                    segment = self._hand_over()
                    view, raw, used = segment.view, segment.slot, 0
                if pacing.due_ns != NEVER and (now := clock()) >= pacing.due_ns:
                    self._dispatch(now)
        segment.used = used

    def _done(self) -> bool:
        return self._cancelled or (self._pacing.exhausted and not self._live.in_flight and not self._waiting)

    def _dispatch(self, now: int) -> None:
        for _ in range(_BURST):
            due = self._pacing.take(now)
            if due is None:
                return
            self._live.begin()
            self._send(due[0], due[1])
            now = time.monotonic_ns()

    def _send(self, index: int, scheduled: int) -> None:
        connections = self._connections
        if not connections.idle:
            self._waiting.append((index, scheduled))
            if connections.connecting < len(self._waiting):
                code = connections.open()
                if code:
                    self._unconnected(code)
            return
        fd = connections.idle.pop()
        connections.mode[fd] = Mode.HEAD
        if len(connections.idle) < self._plan.spare_connections and not connections.connecting:
            connections.open()
        if fd >= len(self._request):
            self._grow()
        self._transmit(fd, index, scheduled)

    def _transmit(self, fd: int, index: int, scheduled: int) -> None:
        """Hand a request to the kernel on an open connection that is free."""
        connections = self._connections
        data: memoryview | bytes = self._payloads[self._payload_of[index % self._cycle]]
        if connections.encrypted:
            data = connections.encrypt(fd, data)
        self._request[fd] = index
        sent = time.monotonic_ns()
        try:
            count = connections.send[fd](data)
        except BlockingIOError:
            count = 0
        except OSError:
            # Nothing of it was sent, so it is as safe on another connection as it was on this.
            connections.close(fd)
            self._request[fd] = -1
            self._forget(fd)
            self.retried += 1
            self._waiting.append((index, scheduled))
            self._serve_waiting()
            return
        if count < len(data):
            self._unsent[fd] = (data[count:], scheduled)
            self._since[fd] = sent
            connections.await_writable(fd)
            return
        connections.mode[fd] = _HEAD
        self._since[fd] = sent
        self._segment.sends += _line(index, connections.number[fd], scheduled, sent)

    def _send_rest(self, fd: int) -> None:
        data, scheduled = self._unsent[fd]
        sent = time.monotonic_ns()
        try:
            count = self._connections.send[fd](data)
        except BlockingIOError:
            return
        except OSError:
            self._answered_early(fd)
            return
        if count < len(data):
            self._unsent[fd] = (data[count:], scheduled)
            return
        del self._unsent[fd]
        self._since[fd] = sent
        self._connections.await_answer(fd)
        self._note_send(fd, scheduled, sent)

    def _note_send(self, fd: int, scheduled: int, sent: int) -> None:
        self._segment.sends += _line(self._request[fd], self._connections.number[fd], scheduled, sent)

    def _answered_early(self, fd: int) -> None:
        """The server answers, or closes, before it has read all: its answer is read, the rest never sent."""
        _, scheduled = self._unsent.pop(fd)
        self._note_send(fd, scheduled, -1)
        self._connections.used[fd] = False
        self._answers.spoilt.add(fd)
        self._connections.await_answer(fd)

    def _end(self, fd: int, verdict: int, stamp: bytes) -> None:
        """Act on what the framing says of an answer."""
        if verdict == WHOLE:
            self._whole(fd, stamp)
        elif verdict == BAD:
            self._finish(fd, End.BAD_HEAD, time.monotonic_ns())

    def _whole(self, fd: int, stamp: bytes) -> None:
        """The answer is whole: its connection takes the slot's next request, rests, or is closed."""
        seconds, nanoseconds = _unpack_stamp(stamp)
        at = seconds * 1_000_000_000 + nanoseconds - self._offset_ns
        answers = self._answers
        if answers.keep[fd] and not answers.left[fd]:
            following = -1 if self._waiting else self._pacing.turn(at)
            if following >= 0:
                self._segment.ends += _line(self._request[fd], _WHOLE, 0, at)
                if answers.exact:
                    answers.renew(fd)
                self._connections.used[fd] = True
                self._transmit(fd, following, at)
                return
        self._finish(fd, _WHOLE, at)

    def _finish(self, fd: int, how: int, at: int) -> None:
        """End the exchange on ``fd`` at a time; its connection rests or is closed."""
        self._segment.ends += _line(self._request[fd], how, 0, at)
        self._request[fd] = -1
        connections = self._connections
        if how == _WHOLE and self._answers.keep[fd] and not self._answers.left[fd]:
            connections.used[fd] = True
            connections.rest(fd)
        else:
            connections.close(fd)
        self._forget(fd)
        self._live.finish(ok=how in {_WHOLE, End.EOF})
        self._pacing.release(at)
        if self._waiting:
            self._serve_waiting()

    def _forget(self, fd: int) -> None:
        self._answers.forget(fd)
        if self._unsent:
            self._unsent.pop(fd, None)

    def _broken(self, fd: int, how: int) -> None:
        """The peer closed a connection on which an answer was awaited."""
        connections = self._connections
        index = self._request[fd]
        if connections.used[fd] and index >= 0 and self._answers.untouched(fd):
            # A kept-alive connection that its server closed just as we sent: the request never arrived.
            self.retried += 1
            scheduled = self._scheduled_of(fd)
            self._request[fd] = -1
            connections.close(fd)
            self._forget(fd)
            self._waiting.append((index, scheduled))
            self._serve_waiting()
            return
        if fd in self._unsent:
            self._note_send(fd, self._unsent[fd][1], -1)
        self._finish(fd, how, time.monotonic_ns())

    def _scheduled_of(self, fd: int) -> int:
        if fd in self._unsent:
            return self._unsent[fd][1]
        sends = self._segment.sends
        for position in range(len(sends) - LINE.size, -1, -LINE.size):
            request, _, scheduled, _ = LINE.unpack_from(sends, position)
            if request == self._request[fd]:
                return int(scheduled)
        return self._since[fd]

    def _attend(self, fd: int, kind: int, ready: int) -> None:
        """See to a descriptor that is not reading an answer."""
        if kind == Mode.SENDING:
            if ready & WRITE:
                self._send_rest(fd)
            else:
                self._answered_early(fd)
        elif kind in {Mode.CONNECTING, Mode.HANDSHAKE}:
            code = self._connections.advance(fd)
            if code:
                self._connections.close(fd)
                self._unconnected(code)
            else:
                self._serve_waiting()
        elif kind == Mode.IDLE:
            # Nothing was asked on it, so readiness is the server's goodbye, or TLS's own affairs.
            if not self._connections.still_idle(fd):
                self._connections.close(fd)
        elif kind == Mode.CONTROL:
            self._obey(fd)

    def _serve_waiting(self) -> None:
        while self._waiting and self._connections.idle:
            index, scheduled = self._waiting.popleft()
            self._send(index, scheduled)
        for _ in range(len(self._waiting) - self._connections.connecting):
            code = self._connections.open()
            if code:
                self._unconnected(code)
                return

    def _unconnected(self, code: int) -> None:
        """A connection could not be made: the request that waited longest fails with it."""
        if not self._waiting:
            return
        index, scheduled = self._waiting.popleft()
        now = time.monotonic_ns()
        self._segment.sends += _line(index, -1, scheduled, -1)
        self._segment.ends += _line(index, End.CONNECT, code, now)
        self._live.finish(ok=False)
        self._pacing.release(now + _REST_NS)

    def _advance_connections(self, deadline: int) -> int:
        for fd, _ in self._poller.wait(deadline):
            if self._connections.mode[fd] in {Mode.CONNECTING, Mode.HANDSHAKE}:
                code = self._connections.advance(fd)
                if code:
                    self._connections.close(fd)
                    return code
            elif self._connections.mode[fd] == Mode.CONTROL:
                self._obey(fd)
                return 0
        return 0

    def _obey(self, fd: int) -> None:
        """Read the control pipe: whatever it says, or its end, gives up what is open."""
        os.read(fd, 64)
        self._pacing.stop()
        self._give_up()

    def _give_up(self) -> None:
        now = time.monotonic_ns()
        for fd, index in enumerate(self._request):
            if index >= 0 and self._connections.mode[fd] != Mode.UNUSED:
                if fd in self._unsent:
                    self._note_send(fd, self._unsent[fd][1], -1)
                self._segment.ends += _line(index, End.CANCELLED, 0, now)
        for index, scheduled in self._waiting:
            self._segment.sends += _line(index, -1, scheduled, -1)
            self._segment.ends += _line(index, End.UNSENT, 0, now)
        self._waiting.clear()
        self._cancelled = True

    def _tick(self, now: int) -> None:
        """What need not happen at once: timeouts, the clock offset, the live figures, a part-filled segment."""
        self._tick_ns = now + _TICK_NS
        if self._plan.kernel_stamps:
            self._doze.tick(now, self._reads + len(self._segment.requests), self._live.in_flight)
        self.spin.tick(now)
        if now >= self._stop_ns:
            self._pacing.stop()
        if now >= self._late_ns:
            self._late_ns = now + max(_TICK_NS, min(self._plan.timeout_ns // 20, _LATE_NS))
            self._time_out(now)
        self._live.publish(now, self._pacing.next)
        if now >= self._flush_ns:
            self._flush_ns = now + _FLUSH_NS
            if self._segment.empty():
                self._measure_offset()
            elif self._outlet.ready(self._segment):
                self._hand_over()

    def _time_out(self, now: int) -> None:
        limit = now - self._plan.timeout_ns
        mode = self._connections.mode
        late = [
            fd
            for fd, index in enumerate(self._request)
            if index >= 0 and self._since[fd] < limit and mode[fd] != Mode.UNUSED
        ]
        for fd in late:
            if fd in self._unsent:
                self._note_send(fd, self._unsent[fd][1], -1)
            self._finish(fd, End.TIMEOUT, now)
        while self._waiting and self._waiting[0][1] < limit:
            index, scheduled = self._waiting.popleft()
            self._segment.sends += _line(index, -1, scheduled, -1)
            self._segment.ends += _line(index, End.TIMEOUT, 0, now)
            self._live.finish(ok=False)
            self._pacing.release(now)

    def _hand_over(self) -> Segment:
        # A measurement at each border brackets every stamp in the segment.
        self._measure_offset()
        self._reads += len(self._segment.requests)
        self._segment = self._outlet.put(self._segment)
        return self._segment

    def _measure_offset(self) -> None:
        at, offset = stamps.clock_offset()
        self._offset_ns = offset
        self._segment.clocks.extend((at, offset))

    def _user_stamp(self) -> bytes:
        self.unstamped += 1
        return stamps.STAMP.pack(*divmod(time.time_ns(), 1_000_000_000))

    def _grow(self) -> None:
        missing = len(self._connections.mode) - len(self._request)
        self._request.extend([-1] * missing)
        self._since.extend([0] * missing)
        self._answers.grow()
