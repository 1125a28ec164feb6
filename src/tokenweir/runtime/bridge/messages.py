"""Every method and notification of the bridge, with its schema: both sides decode into these types, or refuse.

A frame is a 4-byte big-endian length and that many bytes of JSON. Requests and answers are JSON-RPC 2.0; ids are
counted by the caller. The server is the only caller of methods; the child sends answers and notifications.

A request for text goes in two steps, so that it can be admitted by its true size: ``prepare`` renders and
tokenises it beside the device thread and says how large it is; ``start`` hands it to the device. ``cancel``
forgets it in either state.
"""

from __future__ import annotations

from typing import Final, TypeAlias

import msgspec

from tokenweir.core.events import Event
from tokenweir.core.requests import GenerateRequest, Json, Message
from tokenweir.ports.inference import DeviceMemory, LoadSpec, ModelCard
from tokenweir.runtime.options import RunOptions

PROTOCOL_VERSION: Final = 1
MAX_FRAME_BYTES: Final = 64 << 20
LENGTH_BYTES: Final = 4


class Code:
    """Error codes: JSON-RPC's own, and ours from −32000 downwards. ``Fault.data`` holds our error's details."""

    PARSE: Final = -32700
    INVALID_REQUEST: Final = -32600
    METHOD_NOT_FOUND: Final = -32601
    INVALID_PARAMS: Final = -32602
    INTERNAL: Final = -32603
    ENGINE: Final = -32000
    MODEL_NOT_LOADED: Final = -32001
    NO_MEMORY: Final = -32002
    TOO_MANY_STREAMS: Final = -32003
    GUIDANCE: Final = -32004
    TIMEOUT: Final = -32006
    DRAINING: Final = -32007


class FaultData(msgspec.Struct, frozen=True, kw_only=True):
    """A WeirError on the wire: ``code`` is the class's, so that the server raises the same one.

    ``param`` and ``reason`` are those of a ParameterError, ``retry_after_ns`` of a ServingError.
    """

    code: str
    mend: str = ""
    retryable: bool = False
    param: str = ""
    reason: str = ""
    retry_after_ns: int | None = None


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """A JSON-RPC error."""

    code: int
    message: str
    data: FaultData | None = None


# -- methods: Params and Result ------------------------------------------------------------------------------------


class Initialize(msgspec.Struct, frozen=True, kw_only=True):
    """``initialize``: the first call. ``options`` are the engine's own; ``limit_bytes`` caps device memory.

    ``prefix_cache_bytes``, ``artifacts`` (a directory) and ``artifact_bytes`` (the most that is kept there) serve the
    caches; ``max_active_streams`` bounds streams that are prepared or started.
    """

    protocol: int
    engine: str
    epoch: int
    limit_bytes: int
    prefix_cache_bytes: int
    max_active_streams: int
    artifacts: str = ""
    artifact_bytes: int = 0
    options: dict[str, Json] = {}


class Initialized(msgspec.Struct, frozen=True, kw_only=True):
    """The child is there: its process, its engine and that engine's version."""

    pid: int
    engine: str
    engine_version: str
    memory: DeviceMemory


class Ping(msgspec.Struct, frozen=True, kw_only=True):
    """``ping``: answered by the RPC thread; ``stalled_ns`` tells how long the device thread has not come round."""


class Pong(msgspec.Struct, frozen=True, kw_only=True):
    """The child's pulse. ``stalled_ns`` is 0 while the device thread has nothing to do."""

    epoch: int
    rss_bytes: int
    memory: DeviceMemory
    streams: int
    stalled_ns: int


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """``load``: put a model on the device. Answered with its :class:`ModelCard`."""

    spec: LoadSpec
    card: ModelCard


class Unload(msgspec.Struct, frozen=True, kw_only=True):
    """``unload``: give a model's memory back; its streams fail as retryable. Answered with the memory after."""

    model: str


class Prepare(msgspec.Struct, frozen=True, kw_only=True):
    """``prepare``: check, render and tokenise. ``stream`` is the server's number for it, never used twice.

    ``default_max_tokens`` is the model's own, where it has one.
    """

    stream: int
    model: str
    request: GenerateRequest
    options: RunOptions = RunOptions()
    default_max_tokens: int | None = None


class Prepared(msgspec.Struct, frozen=True, kw_only=True):
    """How large a prepared request is: prompt tokens, and the most that each of ``sequences`` (``n``) may answer."""

    stream: int
    prompt_tokens: int
    max_tokens: int
    sequences: int = 1
    exclusive: bool = False


class PrepareBatch(msgspec.Struct, frozen=True, kw_only=True):
    """``prepare_batch``: many at once; answered in order with :class:`Prepared` or :class:`Fault` for each."""

    items: tuple[Prepare, ...]


class PreparedItem(msgspec.Struct, frozen=True, kw_only=True):
    """One answer of ``prepare_batch``: either is set."""

    prepared: Prepared | None = None
    fault: Fault | None = None


class PreparedBatch(msgspec.Struct, frozen=True, kw_only=True):
    """The answers of ``prepare_batch``, in the order asked."""

    items: tuple[PreparedItem, ...]


class Tokenize(msgspec.Struct, frozen=True, kw_only=True):
    """``tokenize``: text, or messages through the chat template."""

    model: str
    text: str = ""
    messages: tuple[Message, ...] = ()


class Tokens(msgspec.Struct, frozen=True, kw_only=True):
    """Token ids."""

    tokens: tuple[int, ...]


class Detokenize(msgspec.Struct, frozen=True, kw_only=True):
    """``detokenize``: the text of token ids."""

    model: str
    tokens: tuple[int, ...]


class Text(msgspec.Struct, frozen=True, kw_only=True):
    """Text."""

    text: str


class Embed(msgspec.Struct, frozen=True, kw_only=True):
    """``embed``: one vector for each input."""

    model: str
    inputs: tuple[str, ...]


class Embedded(msgspec.Struct, frozen=True, kw_only=True):
    """Vectors of unit length, in order, and how many tokens were read."""

    vectors: tuple[tuple[float, ...], ...]
    input_tokens: int


class Shutdown(msgspec.Struct, frozen=True, kw_only=True):
    """``shutdown``: unload everything, answer with :class:`Done`, and end with status 0."""


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """Nothing more to say."""


# -- notifications, server to child ----------------------------------------------------------------------------------


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """``start``: decode a prepared stream. Its events are numbered from ``first_seq``.

    ``credits`` is how many tokens may be sent before ``credit`` grants more; a stream without credit is held:
    it keeps its cache, does not advance, and does not slow the others.
    """

    stream: int
    first_seq: int
    credits: int


class Credit(msgspec.Struct, frozen=True, kw_only=True):
    """``credit``: the reader took this many tokens of a stream."""

    stream: int
    tokens: int


class Cancel(msgspec.Struct, frozen=True, kw_only=True):
    """``cancel``: forget a stream; a ``Cancelled`` event is its last, unless it has ended already."""

    stream: int


class Tune(msgspec.Struct, frozen=True, kw_only=True):
    """``tune``: how much a step may do from now on; sent by the load controller."""

    model: str
    batch: int
    prefill_tokens: int


# -- notifications, child to server ----------------------------------------------------------------------------------


class StreamEvents(msgspec.Struct, frozen=True, kw_only=True):
    """Consecutive events of one stream."""

    stream: int
    events: tuple[Event, ...]


class Stepped(msgspec.Struct, frozen=True, kw_only=True):
    """``stepped``: what one step of one model brought, for all its streams at once.

    ``step_ns`` is the time the device took; ``decoded`` and ``prefilled`` count tokens; ``running`` and
    ``waiting`` count sequences in the batch and before it; ``drafted`` and ``accepted`` count the draft model's
    proposals.
    """

    model: str
    streams: tuple[StreamEvents, ...]
    step_ns: int = 0
    decoded: int = 0
    prefilled: int = 0
    running: int = 0
    waiting: int = 0
    drafted: int = 0
    accepted: int = 0
    prefix_hit_tokens: int = 0
    prefix_bytes: int = 0


Call: TypeAlias = (
    Initialize | Ping | Load | Unload | Prepare | PrepareBatch | Tokenize | Detokenize | Embed | Shutdown
)
Answer: TypeAlias = (
    Initialized | Pong | ModelCard | DeviceMemory | Prepared | PreparedBatch | Tokens | Text | Embedded | Done
)

METHODS: Final[dict[str, tuple[type[Call], type[Answer]]]] = {
    "initialize": (Initialize, Initialized),
    "ping": (Ping, Pong),
    "load": (Load, ModelCard),
    "unload": (Unload, DeviceMemory),
    "prepare": (Prepare, Prepared),
    "prepare_batch": (PrepareBatch, PreparedBatch),
    "tokenize": (Tokenize, Tokens),
    "detokenize": (Detokenize, Text),
    "embed": (Embed, Embedded),
    "shutdown": (Shutdown, Done),
}
"""Methods: what they are asked with and answered with."""

TO_CHILD: Final = {"start": Start, "credit": Credit, "cancel": Cancel, "tune": Tune}
"""Notifications that the server sends."""

TO_SERVER: Final = {"stepped": Stepped}
"""Notifications that the child sends."""
