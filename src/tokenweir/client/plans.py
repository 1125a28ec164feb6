"""The plans of a client: what it does of each call, step by step (:mod:`tokenweir.client.steps`)."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Final, Literal, TypeVar
from urllib.parse import quote, urlencode

import msgspec

from tokenweir.client.dialogue import Dialogue
from tokenweir.client.exchange import Question
from tokenweir.client.options import Options, Origin
from tokenweir.client.refusals import RETRYABLE, refusal, retry_after_ns, told_amid
from tokenweir.client.steps import Answer, Ask, Came, Hear, Kind, Lost, Plan, Rest, Step, Tell, read_event
from tokenweir.client.trials import Gateways, Trials
from tokenweir.core.clock import Clock, SystemClock
from tokenweir.core.errors import InputError, ProtocolError, UnreachableError, WeirError
from tokenweir.core.events import Cancelled, Completed, Failed
from tokenweir.core.ids import new_id
from tokenweir.core.sse import SseParser
from tokenweir.core.status import RequestList, RequestStatus, Submitted

T = TypeVar("T")

_OK: Final = 200
_NO_CONTENT: Final = 204
_GOOD: Final = range(200, 300)
_LAST_NS: Final = 1_000_000_000
_KEY_LETTERS: Final = 255
_PRINTABLE: Final = range(0x21, 0x7F)


_read_submitted = msgspec.json.Decoder(Submitted).decode
_read_status = msgspec.json.Decoder(RequestStatus).decode
_read_list = msgspec.json.Decoder(RequestList).decode


class Planner:
    """Makes plans for one client."""

    def __init__(
        self, urls: str | Sequence[str], key: str, options: Options, clock: Clock | None = None
    ) -> None:
        """Raises InputError for a URL or key that cannot be used."""
        named = (urls,) if isinstance(urls, str) else tuple(urls)
        if not named:
            raise InputError(
                "a client needs the URL of a gateway", mend="give one, or several of one service"
            )
        if not key or not all(ord(letter) in _PRINTABLE for letter in key):
            # The message does not repeat it: it may be a real key with a slip in it.
            raise InputError(
                "what was given is no API key", mend="give the whole key, which begins with weir_"
            )
        self.options = options
        self._gateways = Gateways(tuple(Origin.parse(url) for url in named))
        self._clock = clock or SystemClock()
        self._authorization = ("authorization", f"Bearer {key}")

    def submit(self, body: Mapping[str, object], idempotency_key: str | None) -> Plan[Submitted]:
        """Have a request taken on, once, however often that must be asked for. Raises InputError."""
        key = idempotency_key if idempotency_key is not None else new_id("idem")
        headers = self._once(key, "application/json")
        question = self._question("POST", "/v1/requests", headers=headers, body=encoded(body))
        return read_answer(_read_submitted, (yield from self._ask(question, self._trials())))

    def status(self, name: str, trials: Trials | None = None) -> Plan[RequestStatus]:
        """Ask how a request stands."""
        question = self._question("GET", _path(name))
        return read_answer(_read_status, (yield from self._ask(question, trials or self._trials())))

    def cancel(self, name: str) -> Plan[RequestStatus]:
        """Have a request stopped."""
        question = self._question("DELETE", _path(name))
        return read_answer(_read_status, (yield from self._ask(question, self._trials())))

    def page(self, cursor: str | None, limit: int) -> Plan[RequestList]:
        """Ask for a page of the history."""
        query = {"limit": str(limit), **({} if cursor is None else {"cursor": cursor})}
        question = self._question("GET", f"/v1/requests?{urlencode(query)}")
        return read_answer(_read_list, (yield from self._ask(question, self._trials())))

    def wait(self, name: str, timeout_ns: int | None) -> Plan[RequestStatus]:
        """Wait for a request's end."""
        trials = self._trials(self._deadline(timeout_ns))
        told = yield from self.status(name, trials)
        while not told.ended:
            yield from self.follow(name, told.last_seq, trials)
            told = yield from self.status(name, trials)
        return told

    def follow(self, name: str, after: int, trials: Trials | None = None) -> Plan[None]:
        """Tell each event above ``after`` once, in order, up to the end, over as many connections as it takes."""
        trials = trials or self._trials()
        while True:
            headers = [("accept", "text/event-stream")]
            if after >= 0:
                headers.append(("last-event-id", str(after)))
            question = self._question("GET", f"{_path(name)}/events", headers=tuple(headers))
            head = yield from self._ask(question, trials, streamed=True)
            if head.status == _NO_CONTENT:
                return
            origin = self._gateways.now
            after, stopped = yield from self._hear(after, trials)
            if stopped is None:
                return
            yield Rest(trials.failed(stopped, origin))

    def _hear(self, after: int, trials: Trials) -> Generator[Step, Came, tuple[int, WeirError | None]]:
        """Tell what one connection brings; return the last seq, and why it stopped, ``None`` after the end."""
        parser = SseParser()
        pieces = 0
        while True:
            came = yield Hear(trials.limit(self.options.silence_ns))
            if not isinstance(came, bytes) or not came:
                reason = came.reason if isinstance(came, Lost) else "the stream was ended early"
                return after, UnreachableError(f"{self._gateways.now.text}: {reason}")
            pieces += 1
            if pieces > 1:
                # A connection that says nothing but its first word, again and again, is no progress.
                trials.progress()
            for frame in parser.feed(came):
                if not frame.event:
                    error = told_amid(frame.data)
                    if not error.retryable:
                        raise error
                    return after, error
                event = read_event(frame.data)
                seq = event.seq
                if seq <= after:
                    continue
                if seq != after + 1:
                    raise ProtocolError(f"after the event {after} came {seq}", mend="report this as a bug")
                after = seq
                trials.progress()
                if isinstance(event, Kind):
                    continue
                yield Tell(event)
                if isinstance(event, Completed | Failed | Cancelled):
                    # What follows is the end of the answer, which leaves the connection fit for another.
                    yield Hear(_LAST_NS)
                    return after, None

    def dialogue(self) -> Dialogue:
        """Return what is said over one WebSocket."""
        return Dialogue(self._gateways, self.options, self._clock, self._authorization)

    def _ask(self, question: Question, trials: Trials, *, streamed: bool = False) -> Plan[Answer]:
        """Ask until there is a good answer. Raises what a refusal means."""
        while True:
            origin = self._gateways.now
            came = yield Ask(origin, question, trials.limit(self.options.answer_ns), streamed)
            if not isinstance(came, Answer):
                lost = came if isinstance(came, Lost) else Lost("nothing came")
                error = UnreachableError(
                    f"{origin.text}: {lost.reason}",
                    mend="see that the gateway runs, and that the URL is right",
                )
                rest_ns = trials.failed(error, origin, final=lost.final)
            elif came.status in _GOOD:
                self._gateways.reached = True
                if not streamed:
                    trials.progress()
                return came
            else:
                self._gateways.reached = True
                refused = refusal(came.status, came.headers, came.body)
                if came.status not in RETRYABLE:
                    raise refused
                rest_ns = trials.failed(refused, origin, advised_ns=retry_after_ns(came.headers))
            yield Rest(rest_ns)

    def _trials(self, deadline_ns: int | None = None) -> Trials:
        return Trials(self._gateways, self.options, self._clock, deadline_ns=deadline_ns)

    def _deadline(self, timeout_ns: int | None) -> int | None:
        return None if timeout_ns is None else self._clock.monotonic_ns() + timeout_ns

    @staticmethod
    def _once(key: str, kind: str) -> tuple[tuple[str, str], ...]:
        """Return the headers of a body that is to be taken on once. Raises InputError."""
        return (("content-type", kind), ("idempotency-key", checked_key(key)))

    def _question(
        self,
        method: Literal["GET", "POST", "DELETE"],
        path: str,
        *,
        headers: tuple[tuple[str, str], ...] = (),
        body: bytes = b"",
    ) -> Question:
        return Question(method=method, path=path, headers=(self._authorization, *headers), body=body)


def checked_key(key: str) -> str:
    """Return an idempotency key. Raises InputError for one that cannot be sent."""
    if not (0 < len(key) <= _KEY_LETTERS and key.isascii() and key.isprintable() and key == key.strip()):
        raise InputError(
            f"{key[:_KEY_LETTERS]!r} is no idempotency key",
            mend=f"use 1 to {_KEY_LETTERS} printable ASCII characters, no space at either end",
        )
    return key


def encoded(body: Mapping[str, object]) -> bytes:
    """Return a body as JSON. Raises InputError."""
    try:
        return msgspec.json.encode(body)
    except (TypeError, ValueError) as error:
        raise InputError(f"the body is no JSON: {error}", mend="give what JSON can say") from error


def name_of(request: str | Submitted | RequestStatus) -> str:
    """Return the ``req_…`` of a request, however it is named."""
    return request if isinstance(request, str) else request.request_id


def _path(name: str) -> str:
    return f"/v1/requests/{quote(name, safe='')}"


def read_answer(decode: Callable[[bytes], T], answer: Answer) -> T:
    """Read a body. Raises ProtocolError."""
    try:
        return decode(answer.body)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ProtocolError(f"the answer cannot be read: {error}", mend="is it a gateway's URL?") from error
