"""What is said over a WebSocket, and what came of it: decided here once, done by whoever moves bytes and waits.

:meth:`Dialogue.step` tells what to do next, :meth:`Dialogue.came` takes what came of it:

==========  =================================================================
``Open``    nothing, once there is a connection; or ``Lost``
``Hear``    bytes, b"" at the end of the connection; or ``Lost``
``Rest``    nothing
==========  =================================================================

Before each step the bytes of :meth:`Dialogue.outgoing` are sent. A lost connection is made again: what is followed is
resumed, and what has no answer yet is said again.
"""

from __future__ import annotations

from collections import deque
from enum import Enum
from typing import Final, NamedTuple, TypeAlias

import msgspec

from tokenweir.client.exchange import BrokenError
from tokenweir.client.options import Options, Origin
from tokenweir.client.refusals import RETRYABLE, refusal, retry_after_ns
from tokenweir.client.steps import Came, Hear, Kind, Lost, Rest, read_event
from tokenweir.client.trials import Gateways, Trials
from tokenweir.client.websocket import RefusedError, TooLongError, WebSocket
from tokenweir.core.clock import Clock
from tokenweir.core.errors import InputError, OverloadedError, ProtocolError, UnreachableError, WeirError
from tokenweir.core.events import Cancelled, Completed, Event, Failed
from tokenweir.core.requests import Json
from tokenweir.core.status import Submitted

_AHEAD: Final = 1024
"""Events of one request that are kept until somebody takes them; those after them are asked for again."""
_FOLLOWED: Final = 1024
"""Requests that a gateway lets one socket follow."""
_MEND: Final = "see that the gateway runs, and that the URL is right"


class Open(NamedTuple):
    """Connect to a gateway; an earlier connection is let go of."""

    origin: Origin


Move: TypeAlias = Open | Hear | Rest


class Said:
    """A message that is answered, by ``submitted`` where it submits."""

    def __init__(self, message: dict[str, Json | msgspec.Raw], trials: Trials, *, follow: bool) -> None:
        self.message = message
        self.trials = trials
        self.follow = follow
        self.answered = False
        self.submitted: Submitted | None = None
        self.refused: WeirError | None = None
        self.retryable = False
        self.advised_ns: int | None = None


class _Flow(Enum):
    ON = "events come one after the other"
    FULL = "what comes is left, since nobody takes what there is"
    ANEW = "what comes is left until the one that was asked for"


class _Followed:
    """A request whose events come."""

    __slots__ = ("error", "flow", "over", "ref", "seq", "streams", "waiting")

    def __init__(self, seq: int, ref: str = "") -> None:
        self.seq = seq
        self.ref = ref
        self.waiting: deque[Event] = deque()
        self.flow = _Flow.ON
        self.over = False
        self.error: WeirError | None = None
        self.streams = 0


class _Heard(msgspec.Struct, frozen=True):
    type: str
    ref: str = ""
    request_id: str = ""
    event: msgspec.Raw = msgspec.Raw()
    ended: bool = False
    status: int = 500
    retry_after: int | None = None


_read = msgspec.json.Decoder(_Heard).decode
_read_submitted = msgspec.json.Decoder(Submitted).decode


class Dialogue:
    """The requests of one WebSocket, over as many connections as it takes."""

    def __init__(
        self, gateways: Gateways, options: Options, clock: Clock, authorization: tuple[str, str]
    ) -> None:
        self._gateways = gateways
        self._options = options
        self._clock = clock
        self._authorization = authorization
        self._trials = self._new_trials()
        self._origin = gateways.now
        self._socket: WebSocket | None = None
        self._ready = False
        self._rest_ns = 0
        self._refs = 0
        self._unanswered: dict[str, Said] = {}
        self._followed: dict[str, _Followed] = {}
        self._full_hands: dict[str, None] = {}
        self._error: WeirError | None = None

    # -- what is wanted -------------------------------------------------------------------------------------------

    def submit(self, body: bytes, key: str, *, follow: bool) -> Said:
        """Have a request taken on, and followed. Raises OverloadedError."""
        if follow:
            self._need_room()
        message: dict[str, Json | msgspec.Raw] = {
            "type": "submit",
            "body": msgspec.Raw(body),
            "idempotency_key": key,
            "follow": follow,
        }
        return self._ask(message, follow=follow)

    def cancel(self, name: str) -> Said:
        """Have a request stopped."""
        return self._ask({"type": "cancel", "request_id": name})

    def follow(self, name: str, after: int) -> None:
        """Have the events of a request above ``after``, also when it is followed already. Raises OverloadedError."""
        known = self._followed.pop(name, None)
        self._full_hands.pop(name, None)
        if known is None:
            self._need_room()
        fresh = self._followed[name] = _Followed(after)
        fresh.streams = 0 if known is None else known.streams
        self._resume(name, fresh)

    def again(self, said: Said) -> None:
        """Say what was refused once more."""
        said.refused, said.answered = None, False
        self._begin(said)

    def forget(self, said: Said) -> None:
        """Nobody waits for an answer any more."""
        self._unanswered.pop(str(said.message["ref"]), None)

    def retry_ns(self, said: Said) -> int | None:
        """Return when to say it again, ns; ``None`` where it was answered well. Raises what a refusal means."""
        if said.refused is None:
            return None
        if not said.retryable:
            raise said.refused
        return said.trials.failed(said.refused, self._origin, advised_ns=said.advised_ns)

    # -- what has come --------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise what ended the socket."""
        if self._error is not None:
            raise self._error

    def follows(self, name: str) -> bool:
        """Whether there is more of a request to take."""
        return name in self._followed

    def has(self, name: str) -> bool:
        """Whether :meth:`take` gives something of a request, or nothing more will come."""
        one = self._followed.get(name)
        return one is None or bool(one.waiting) or one.error is not None

    def take(self, name: str) -> Event | None:
        """Return the next event of a request; ``None`` where there is none now. Raises why there are no more."""
        one = self._followed.get(name)
        if one is None:
            return None
        if not one.waiting:
            if one.error is not None:
                self._drop(name)
                raise one.error
            return None
        event = one.waiting.popleft()
        if not one.waiting:
            if one.over and one.error is None:
                self._drop(name)
            elif one.flow is _Flow.FULL:
                self._resume(name, one)
        return event

    def has_any(self) -> bool:
        """Whether :meth:`take_any` gives something, or nothing more will come."""
        return bool(self._full_hands) or all(one.streams for one in self._followed.values())

    def take_any(self) -> tuple[str, Event] | None:
        """Return the next event of any request that is not streamed alone, in turn. Raises as :meth:`take`."""
        while self._full_hands:
            name = next(iter(self._full_hands))
            del self._full_hands[name]
            event = self.take(name)
            self._hold(name)
            if event is not None:
                return name, event
        return None

    def streamed(self, name: str, *, begins: bool) -> None:
        """Somebody begins, or ends, to take the events of one request alone."""
        one = self._followed.get(name)
        if one is not None:
            one.streams += 1 if begins else -1
            self._full_hands.pop(name, None)
            self._hold(name)

    # -- what is done ---------------------------------------------------------------------------------------------

    def step(self) -> Move:
        """Return what to do next."""
        if self._rest_ns:
            return Rest(self._rest_ns)
        if self._socket is None:
            return Open(self._gateways.now)
        return Hear(self._options.silence_ns if self._ready else self._options.answer_ns)

    def outgoing(self) -> bytes:
        """Return, once, the bytes to send."""
        return b"" if self._socket is None else self._socket.outgoing()

    def came(self, step: Move, came: Came) -> None:
        """Take what came of a step."""
        if isinstance(came, Lost):
            at = step.origin if isinstance(step, Open) else self._origin
            self._lose(UnreachableError(f"{at.text}: {came.reason}", mend=_MEND), at, final=came.final)
            return
        match step:
            case Rest():
                self._rest_ns = 0
            case Open():
                self._origin = step.origin
                self._socket = WebSocket(step.origin, self._authorization)
            case Hear():
                self._feed(came if isinstance(came, bytes) else b"")

    def close(self) -> bytes:
        """End it, and return the last bytes to send."""
        if self._socket is not None and self._ready:
            self._socket.close()
        last = self.outgoing()
        if self._error is None:
            self._end(InputError("the socket was closed", mend="open another"))
        return last

    # -----------------------------------------------------------------------------------------------------------

    def _feed(self, data: bytes) -> None:
        socket = self._socket
        if socket is None:
            return
        try:
            if not data:
                raise BrokenError("the connection was closed")  # noqa: TRY301 - one place says what follows
            for text in socket.feed(data):
                self._message(text)
                if self._socket is not socket:
                    return
        except BrokenError as error:
            self._lose(UnreachableError(f"{self._origin.text}: {error}", mend=_MEND), self._origin)
        except RefusedError as error:
            answer = error.answer
            self._gateways.reached = True
            refused = refusal(answer.status, answer.headers, answer.body)
            if answer.status in RETRYABLE:
                self._lose(refused, self._origin, advised_ns=retry_after_ns(answer.headers))
            else:
                self._end(refused)
        except TooLongError:
            self._end(InputError("a message is longer than the gateway takes", mend="send a shorter body"))
        except ProtocolError as error:
            self._end(error)

    def _message(self, text: str) -> None:
        try:
            heard = _read(text)
        except msgspec.MsgspecError as error:
            raise ProtocolError(
                f"a message cannot be read: {error}", mend="is it a gateway's URL?"
            ) from error
        if heard.type == "ready":
            self._gateways.reached = True
            self._begin_all()
            return
        self._trials.progress()
        match heard.type:
            case "event":
                self._event(heard)
            case "end":
                self._over(heard)
            case "submitted":
                self._submitted(heard, text)
            case "cancelling":
                self._answer(heard.ref)
            case "error":
                self._refused(heard, text)
            case _:
                # A heartbeat, or a message of a later version.
                pass

    def _begin_all(self) -> None:
        """Go on where an earlier connection stopped."""
        self._ready = True
        for name, one in self._followed.items():
            if not one.over and one.flow is not _Flow.FULL:
                self._resume(name, one)
                one.flow = _Flow.ON
        for said in self._unanswered.values():
            self._say(said.message)

    def _event(self, heard: _Heard) -> None:
        one = self._followed.get(heard.request_id)
        if one is None or one.over or one.flow is _Flow.FULL:
            return
        event = read_event(heard.event)
        if event.seq <= one.seq:
            return
        if event.seq != one.seq + 1:
            if one.flow is _Flow.ANEW:
                return
            raise ProtocolError(f"after the event {one.seq} came {event.seq}", mend="report this as a bug")
        if len(one.waiting) >= _AHEAD:
            one.flow = _Flow.FULL
            return
        one.flow = _Flow.ON
        one.seq = event.seq
        if isinstance(event, Kind):
            return
        one.waiting.append(event)
        one.over = isinstance(event, Completed | Failed | Cancelled)
        self._hold(heard.request_id)

    def _over(self, heard: _Heard) -> None:
        one = self._followed.get(heard.request_id)
        if one is None or one.over or one.flow is _Flow.FULL or one.ref != heard.ref:
            # Another is asked for: this is the end of what was left.
            return
        if not heard.ended:
            error = UnreachableError(f"{self._origin.text}: the events were ended early", mend=_MEND)
            self._lose(error, self._origin)
            return
        one.over = True
        if not one.waiting:
            self._drop(heard.request_id)

    def _submitted(self, heard: _Heard, text: str) -> None:
        said = self._answer(heard.ref)
        if said is None:
            return
        try:
            told = _read_submitted(text)
        except msgspec.MsgspecError as error:
            raise ProtocolError(
                f"a message cannot be read: {error}", mend="is it a gateway's URL?"
            ) from error
        said.submitted = told
        if said.follow:
            self._followed.setdefault(told.request_id, _Followed(-1)).ref = heard.ref

    def _refused(self, heard: _Heard, text: str) -> None:
        wait = {} if heard.retry_after is None else {"retry-after": str(heard.retry_after)}
        error = refusal(heard.status, wait, text.encode())
        said = self._answer(heard.ref)
        if said is not None:
            said.refused, said.retryable = error, heard.status in RETRYABLE
            said.advised_ns = retry_after_ns(wait)
            return
        if not heard.ref:
            self._end(error)
            return
        name = next((name for name, one in self._followed.items() if one.ref == heard.ref), None)
        if name is None:
            return
        if heard.status in RETRYABLE:
            self._lose(error, self._origin, advised_ns=retry_after_ns(wait))
            return
        one = self._followed[name]
        one.error, one.over = error, True
        self._hold(name)

    def _answer(self, ref: str) -> Said | None:
        said = self._unanswered.pop(ref, None)
        if said is not None:
            said.answered = True
        return said

    def _ask(self, message: dict[str, Json | msgspec.Raw], *, follow: bool = False) -> Said:
        said = Said(message, self._new_trials(), follow=follow)
        self._begin(said)
        return said

    def _begin(self, said: Said) -> None:
        ref = self._new_ref()
        said.message["ref"] = ref
        self._unanswered[ref] = said
        self._say(said.message)

    def _resume(self, name: str, one: _Followed) -> None:
        # What was on its way before this is heard may still come.
        one.flow, one.ref = _Flow.ANEW, self._new_ref()
        self._say({"type": "resume", "request_id": name, "after": one.seq, "ref": one.ref})

    def _say(self, message: dict[str, Json | msgspec.Raw]) -> None:
        """Send a message, where a connection is ready; a later one gets it when it is."""
        if self._socket is not None and self._ready:
            self._socket.say(msgspec.json.encode(message))

    def _new_ref(self) -> str:
        self._refs += 1
        return str(self._refs)

    def _hold(self, name: str) -> None:
        """Have :meth:`take_any` give what there is of a request."""
        one = self._followed.get(name)
        if one is not None and not one.streams and (one.waiting or one.error is not None):
            self._full_hands[name] = None

    def _drop(self, name: str) -> None:
        self._followed.pop(name, None)
        self._full_hands.pop(name, None)

    def _lose(
        self, error: WeirError, origin: Origin, *, final: bool = False, advised_ns: int | None = None
    ) -> None:
        """Connect again, after a pause; or give up."""
        self._socket, self._ready = None, False
        try:
            self._rest_ns = self._trials.failed(error, origin, final=final, advised_ns=advised_ns)
        except WeirError as given_up:
            self._end(given_up)

    def _end(self, error: WeirError) -> None:
        self._socket, self._ready, self._error = None, False, error

    def _need_room(self) -> None:
        if len(self._followed) >= _FOLLOWED:
            raise OverloadedError(
                f"{_FOLLOWED} requests are followed over this socket, as many as may be",
                mend="take the events of those first, or open another socket",
            )

    def _new_trials(self) -> Trials:
        return Trials(self._gateways, self._options, self._clock)
