"""Taking requests on: read, estimated, reserved, durable, and only then answered for."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from typing import Any, Final, Literal
from urllib.parse import urlsplit

import msgspec

from tokenweir.core.clock import Clock
from tokenweir.core.errors import ConflictError, ForbiddenError, InputError, ParameterError
from tokenweir.core.requests import Kind
from tokenweir.core.units import parse_duration
from tokenweir.gateway.batching import Batcher
from tokenweir.gateway.direct.body import read
from tokenweir.gateway.direct.relay import Direct, exceeded
from tokenweir.gateway.metering.counting import counted_prompt
from tokenweir.gateway.queued.kept import PATHS, Kept
from tokenweir.gateway.queued.sealing import Sealer
from tokenweir.ports.access import Caller
from tokenweir.ports.eventlog import LANES
from tokenweir.ports.intake import Acceptance, Conflict, Intake, Mode, Outcome, Repeated, Taken
from tokenweir.ports.quota import Denied
from tokenweir.telemetry.spans import Tracer

_PRIORITY_MOST: Final = 9
_KEY_LETTERS: Final = 255
_WEBHOOK_LETTERS: Final = 2048
_SHOWN: Final = 200
_DEADLINE_MOST_NS: Final = 31 * 86_400 * 1_000_000_000
_NS_PER_S: Final = 1_000_000_000
_FIELDS: Final[tuple[tuple[str, Kind], ...]] = (
    ("messages", "chat"),
    ("prompt", "completion"),
    ("input", "embedding"),
)


class _Native(msgspec.Struct, frozen=True):
    """The fields of a native request that are ours, beside those of an OpenAI body."""

    mode: Literal["single", "stream"] | None = None
    priority: int | None = None
    deadline: str | float | None = None
    webhook: str = ""
    retry_after_tokens: bool = False
    stream: bool | None = None


_OURS: Final = ("mode", "priority", "deadline", "webhook", "retry_after_tokens")
_read_native = msgspec.json.Decoder(_Native).decode


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """A request that somebody asks to be taken on.

    ``said`` is all that the caller sent: the same idempotency key with another is refused. ``kept`` is what the
    worker gets. ``route`` is the door. ``shaped``: it has passed the pipeline and the brown-out.
    """

    kept: Kept
    mode: Mode
    route: str
    said: bytes
    idempotency: str = ""
    priority: int | None = None
    deadline_ns: int | None = None
    webhook: str = ""
    shaped: bool = False


Shaping = Callable[[Caller, bytes, Wish], Awaitable[Wish]]
"""Makes of a caller's request what is to be taken on; what it raises refuses it."""


def native(raw: bytes, *, idempotency: str, pool: str, webhooks: bool) -> Wish:
    """Read the body of ``POST /v1/requests``: OpenAI's, with ``mode``, ``priority``, ``deadline``, ``webhook`` beside.

    Raises ParameterError.
    """
    read(raw)
    try:
        ours = _read_native(raw)
    except msgspec.ValidationError as error:
        raise ParameterError(
            f"the request cannot be used: {error}",
            param=str(error).rpartition("$.")[2].rstrip("`") or "body",
            reason="invalid_type",
            mend="see docs/gateway/queued.md for this field",
        ) from error
    fields: dict[str, Any] = msgspec.json.decode(raw)
    kinds: list[Kind] = [kind for name, kind in _FIELDS if name in fields]
    if len(kinds) != 1:
        raise ParameterError(
            "the request has not exactly one of messages, prompt and input",
            param="messages",
            reason="missing_required_parameter",
            mend="send the body of a chat, completion or embedding request",
        )
    kind = kinds[0]
    mode = ours.mode or ("stream" if ours.stream and kind != "embedding" else "single")
    if mode == "stream" and kind == "embedding":
        raise ParameterError("embeddings are not streamed", param="mode", mend="use mode single")
    if ours.webhook:
        _check_webhook(ours.webhook, switched_on=webhooks)
    for name in (*_OURS, "stream", *(() if mode == "stream" else ("stream_options",))):
        fields.pop(name, None)
    if mode == "stream":
        fields["stream"] = True
    kept = Kept(
        path=PATHS[kind],
        body=msgspec.Raw(msgspec.json.encode(fields)),
        pool=pool,
        retry_after_tokens=ours.retry_after_tokens,
    )
    return Wish(
        kept=kept,
        mode=mode,
        route="requests",
        said=raw,
        idempotency=idempotency,
        priority=ours.priority,
        deadline_ns=_deadline(ours.deadline),
        webhook=ours.webhook,
    )


def _deadline(value: str | float | None) -> int | None:
    """Return the nanoseconds of ``"30s"`` or of a number of seconds."""
    if value is None:
        return None
    try:
        found = parse_duration(value) if isinstance(value, str) else int(value * _NS_PER_S)
    except InputError as error:
        raise ParameterError(error.message, param="deadline", mend=error.mend) from error
    except OverflowError:
        # A number of seconds that has no nanoseconds.
        found = -1
    if not 0 < found <= _DEADLINE_MOST_NS:
        raise ParameterError(
            f"the deadline {value!r} is not within a month", param="deadline", mend='write "30s", or seconds'
        )
    return found


def _check_webhook(url: str, *, switched_on: bool) -> None:
    if not switched_on:
        raise ParameterError(
            "webhooks are not switched on here", param="webhook", mend="set collector.webhook_secret"
        )
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        host, port, parts = "", None, urlsplit("")
    plain = url.isascii() and url.isprintable() and " " not in url and len(url) <= _WEBHOOK_LETTERS
    if (
        not plain
        or parts.scheme not in {"http", "https"}
        or not host
        or parts.username
        or parts.fragment
        or port == 0
    ):
        raise ParameterError(
            f"the webhook {url[:_SHOWN]!r} cannot be used",
            param="webhook",
            mend="write https://, a host and a path, in ASCII and without blanks",
        )


def idempotency_key(sent: bytes | None) -> str:
    """Return the key that a header holds; "" is none. Raises ParameterError."""
    if sent is None:
        return ""
    text = sent.decode("latin-1")
    if not text or len(text) > _KEY_LETTERS or not text.isascii() or not text.isprintable():
        raise ParameterError(
            "the idempotency key is not 1 to 255 printable ASCII characters",
            param="Idempotency-Key",
            mend="a UUID will do",
        )
    return text


class Accepting:
    """Takes requests on, many in one call. :meth:`run` works until cancelled."""

    def __init__(
        self,
        intake: Intake,
        direct: Direct,
        *,
        sealer: Sealer,
        clock: Clock,
        queue_lease_ns: int,
        calls: int = 1,
    ) -> None:
        self._batcher: Batcher[Acceptance, Outcome] = Batcher(intake.accept, name="intake", calls=calls)
        self._direct = direct
        self._sealer = sealer
        self._clock = clock
        self._queue_lease_ns = queue_lease_ns
        self.shaping: Shaping | None = None
        """What every request passes that is taken on, if anything."""
        self.tracer: Tracer | None = None

    async def run(self) -> None:
        """Take on what comes."""
        await self._batcher.run()

    async def shape(self, caller: Caller, request: bytes, wish: Wish) -> Wish:
        """Return what is to be taken on of a request: :meth:`accept` does it where it was not done before.

        Raises what a processor or the brown-out refuses it with.
        """
        if wish.shaped or self.shaping is None:
            return wish
        return msgspec.structs.replace(await self.shaping(caller, request, wish), shaped=True)

    async def accept(self, caller: Caller, request: bytes, wish: Wish) -> Taken | Repeated:
        """Take a request on; once this returns it is durable, and it will end.

        Raises:
            ParameterError: the body cannot be used.
            ForbiddenError: the key may not ask this model.
            NotFoundError: no endpoint serves it.
            QuotaExceededError: a limit is reached.
            ConflictError: the idempotency key belongs to another body.
            UnavailableError: nothing could be made durable.
        """
        wish = await self.shape(caller, request, wish)
        body = wish.kept.read()
        self._direct.pool.need(body.model)
        if not caller.may_ask(body.model):
            raise ForbiddenError(
                f"this key may not ask the model {body.model!r}",
                mend=f"it may ask {', '.join(caller.models)}",
            )
        tokenizer = self._direct.pool.tokenizers.get(body.model)
        prompt = None if tokenizer is None else await counted_prompt(tokenizer, body)
        reserve = self._direct.wanted(caller, request, body, prompt)
        if wish.mode != "direct":
            # It may wait for a worker far longer than a request that is being relayed.
            lease_ns = max(reserve.lease_ns, self._queue_lease_ns)
            reserve = msgspec.structs.replace(reserve, lease_ns=lease_ns)
        kept = wish.kept
        if self.tracer is not None:
            kept = msgspec.structs.replace(kept, trace=self.tracer.trace())
        outcome = await self._batcher.submit(
            Acceptance(
                reserve=reserve,
                mode=wish.mode,
                lane=lane_of(caller.user),
                route=wish.route,
                body=self._sealer.seal(request, kept.encode()),
                body_hash=_hash(wish),
                idempotency=wish.idempotency,
                priority=_priority(wish.priority, caller),
                deadline_ns=wish.deadline_ns,
                webhook=wish.webhook,
            )
        )
        if isinstance(outcome, Denied):
            raise exceeded(outcome, reserve, self._clock.wall_ns())
        if isinstance(outcome, Conflict):
            raise ConflictError(
                f"the idempotency key {wish.idempotency!r} was used with another body",
                mend="send the same body again, or use a new key",
            )
        if isinstance(outcome, Taken):
            measures = self._direct.measures
            measures.left(outcome.headroom)
            if wish.mode != "direct":
                measures.queued_tokens[body.model] += reserve.estimate.tokens
        return outcome


def lane_of(user: bytes) -> int:
    """Return the lane of a user's requests."""
    return int.from_bytes(hashlib.blake2b(user, digest_size=4).digest(), "big") % LANES


def _priority(wanted: int | None, caller: Caller) -> int:
    """Return a priority that is never above the caller's own."""
    if wanted is None:
        return caller.priority
    if not 0 <= wanted <= _PRIORITY_MOST:
        raise ParameterError(
            f"the priority {wanted!r} is not 0 to {_PRIORITY_MOST}", param="priority", mend="higher is sooner"
        )
    return min(wanted, caller.priority)


def _hash(wish: Wish) -> bytes:
    """Return the digest that tells bodies apart: for an idempotency key the order of fields and blanks do not count."""
    said = wish.said
    if wish.idempotency:
        said = msgspec.json.encode(msgspec.json.decode(said), order="sorted")
    return hashlib.sha256(wish.route.encode() + b"\0" + said).digest()
