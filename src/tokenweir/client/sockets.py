"""A WebSocket for programs that block: many requests over one connection, made again when it is lost."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Mapping
from types import TracebackType
from typing import Final, Self

from tokenweir.client.connections import Connection, Pool
from tokenweir.client.dialogue import Dialogue, Move, Open, Said
from tokenweir.client.exchange import BrokenError
from tokenweir.client.plans import checked_key, encoded, name_of
from tokenweir.client.results import lost
from tokenweir.client.steps import Came, Hear, Rest
from tokenweir.core.errors import ProtocolError
from tokenweir.core.events import Event
from tokenweir.core.ids import new_id
from tokenweir.core.status import Submitted

_NS: Final = 1_000_000_000


class Socket:
    """One connection that many requests share. Use it in one thread at a time; close it, or use it in ``with``.

    A lost connection is made again, at another gateway where there are several: what is followed goes on where it
    stopped, and what was submitted is submitted once. When that does not come about, or the key counts no more, every
    call raises why; then make another.
    """

    def __init__(self, dialogue: Dialogue, pool: Pool) -> None:
        """Nothing is connected yet."""
        self._dialogue = dialogue
        self._pool = pool
        self._connection: Connection | None = None

    def submit(
        self,
        body: Mapping[str, object] | None = None,
        /,
        *,
        idempotency_key: str | None = None,
        follow: bool = True,
        **fields: object,
    ) -> Submitted:
        """Have a request taken on, and its events sent. See :meth:`tokenweir.client.Client.submit`.

        Raises as that one, and OverloadedError where as many are followed as may be.
        """
        key = checked_key(new_id("idem") if idempotency_key is None else idempotency_key)
        said = self._dialogue.submit(encoded({**(body or {}), **fields}), key, follow=follow)
        self._finish(said)
        if said.submitted is None:
            raise ProtocolError("a submission was answered as something else", mend="report this as a bug")
        return said.submitted

    def follow(self, request: str | Submitted, *, after: int = -1) -> None:
        """Have the events of a request above ``after`` sent, as those of one that another program submitted.

        Raises OverloadedError. Whether there is such a request shows when its events are taken.
        """
        self._dialogue.follow(name_of(request), after)

    def cancel(self, request: str | Submitted) -> None:
        """Have a request stopped; what had come is kept, and charged. Raises NotFoundError."""
        self._finish(self._dialogue.cancel(name_of(request)))

    def events(self) -> Generator[tuple[str, Event]]:
        """Yield the events of all that are followed, each after its ``req_…``, until all have ended.

        Those of one request come once each and in order; requests take turns. Raises why one has no more, as
        NotFoundError: the others go on when this is called again.
        """
        while True:
            self._until(self._dialogue.has_any)
            taken = self._dialogue.take_any()
            if taken is None:
                return
            yield taken

    def stream(self, request: str | Submitted) -> Generator[Event]:
        """Yield the events of one request, once each and in order, up to the end; those of others wait.

        One that is not followed is followed from its first event. Raises as :meth:`events`.
        """
        name, dialogue = name_of(request), self._dialogue
        if not dialogue.follows(name):
            dialogue.follow(name, -1)
        dialogue.streamed(name, begins=True)
        try:
            while dialogue.follows(name):
                self._until(lambda: dialogue.has(name))
                event = dialogue.take(name)
                if event is not None:
                    yield event
        finally:
            dialogue.streamed(name, begins=False)

    def close(self) -> None:
        """Let go of the connection. Requests go on; what is left of them can be followed over another."""
        last = self._dialogue.close()
        if last and self._connection is not None:
            with contextlib.suppress(OSError):
                self._connection.say(last, self._pool.options.connect_ns)
        self._drop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _finish(self, said: Said) -> None:
        """Wait for an answer; say it again where a refusal asks for that. Raises what a refusal means."""
        try:
            while True:
                self._until(lambda: said.answered)
                rest_ns = self._dialogue.retry_ns(said)
                if rest_ns is None:
                    return
                time.sleep(rest_ns / _NS)
                self._dialogue.again(said)
        finally:
            self._dialogue.forget(said)

    def _until(self, come: Callable[[], bool]) -> None:
        """Go on until something has come. Raises what ended the socket."""
        while not come():
            self._dialogue.check()
            step = self._dialogue.step()
            self._dialogue.came(step, self._do(step))

    def _do(self, step: Move) -> Came:
        try:
            match step:
                case Open():
                    self._drop()
                    self._connection = self._pool.fresh(step.origin)
                case Hear():
                    return self._hear(step)
                case Rest():
                    time.sleep(step.rest_ns / _NS)
        except (OSError, BrokenError) as error:
            self._drop()
            return lost(error)
        return None

    def _hear(self, step: Hear) -> bytes:
        if self._connection is None:
            return b""
        data = self._dialogue.outgoing()
        if data:
            self._connection.say(data, self._pool.options.answer_ns)
        return self._connection.hear(step.limit_ns)

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
