"""A simulated engine: everything a real one does but the arithmetic, at a pace and with the faults that are asked for.

It takes a directory whose ``config.json`` has the architecture ``sim``; see :mod:`.sim_config`.
"""

from __future__ import annotations

import importlib
import math
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from typing import Final, Protocol, cast

import msgspec

from tokenweir.core.errors import ConfigError, MissingExtraError, NoMemoryError
from tokenweir.core.units import parse_duration
from tokenweir.ports.inference import DeviceMemory, Guidance, LoadSpec, ModelCard
from tokenweir.runtime.engines.registry import EngineOptions
from tokenweir.runtime.engines.sim_config import SimConfig, read
from tokenweir.runtime.engines.sim_decoder import SimDecoder
from tokenweir.runtime.engines.sim_text import Guide
from tokenweir.runtime.engines.sim_tokens import SimFormat, SimToolCalls

DEFAULT_LIMIT_BYTES: Final = 8 << 30
"""What the simulated device holds when nothing else is said."""


def create(options: EngineOptions) -> SimEngine:
    """Return a simulated engine. Raises ConfigError for any option: it has none."""
    if options.options:
        raise ConfigError(
            f"the engine 'sim' takes no option {next(iter(options.options))!r}",
            mend="a simulated model is described by its config.json",
        )
    return SimEngine(options)


class _Compiler(Protocol):
    def check(self, guidance: Guidance) -> None: ...

    def compile(self, guidance: Guidance) -> Guide: ...


class SimEmbedder:
    """Counts tokens into hashed places: texts that share words are near each other."""

    __slots__ = ("_dimensions",)

    def __init__(self, dimensions: int) -> None:
        self._dimensions = dimensions

    def embed(self, inputs: Sequence[Sequence[int]]) -> Sequence[Sequence[float]]:
        """Return one vector of unit length for each input."""
        return [self._vector(tokens) for tokens in inputs]

    def _vector(self, tokens: Sequence[int]) -> list[float]:
        values = [0.0] * self._dimensions
        for token in tokens:
            place = zlib.crc32(token.to_bytes(4, "little"))
            values[(place >> 1) % self._dimensions] += 1.0 if place & 1 else -1.0
        length = math.sqrt(math.fsum(value * value for value in values))
        if not length:
            values[0] = length = 1.0
        return [value / length for value in values]


class SimModel:
    """A loaded simulated model."""

    def __init__(
        self, config: SimConfig, card: ModelCard, options: EngineOptions, gone: Callable[[str], None]
    ) -> None:
        self._card = card
        self._format = SimFormat()
        self._gone = gone
        self._lock = threading.Lock()
        self._compiler: _Compiler | None = None
        writes = "chat" in card.capabilities or "completion" in card.capabilities
        self._decoder = (
            SimDecoder(config, prefix_cache_bytes=options.prefix_cache_bytes, guide_for=self._guide_for)
            if writes
            else None
        )
        self._embedder = (
            SimEmbedder(config.embedding_dimensions) if "embedding" in card.capabilities else None
        )

    @property
    def card(self) -> ModelCard:
        """What it is."""
        return self._card

    @property
    def format(self) -> SimFormat:
        """Its tokenizer and chat format."""
        return self._format

    @property
    def tool_calls(self) -> SimToolCalls | None:
        """How it writes tool calls."""
        return SimToolCalls() if "tools" in self._card.capabilities else None

    @property
    def decoder(self) -> SimDecoder | None:
        """Its decoder."""
        return self._decoder

    @property
    def embedder(self) -> SimEmbedder | None:
        """Its embedder."""
        return self._embedder

    @property
    def active_bytes(self) -> int:
        """What it takes on the device: weights and caches of running sequences."""
        return self._card.weights_bytes + (self._decoder.active_bytes if self._decoder else 0)

    @property
    def prefix_bytes(self) -> int:
        """What its kept prompts take."""
        return self._decoder.prefix_bytes if self._decoder else 0

    def check_guidance(self, guidance: Guidance) -> None:
        """Compile ``guidance``. Raises GuidanceError."""
        self._guides().check(guidance)

    def close(self) -> None:
        """Give the memory back."""
        self._decoder = None
        self._embedder = None
        self._gone(self._card.name)

    def _guide_for(self, guidance: Guidance) -> Guide:
        return self._guides().compile(guidance)

    def _guides(self) -> _Compiler:
        with self._lock:
            if self._compiler is None:
                try:
                    module = importlib.import_module("tokenweir.runtime.engines.sim_guides")
                except ModuleNotFoundError as error:
                    raise MissingExtraError(
                        f"guidance needs the package {error.name!r}", mend="pip install 'tokenweir[runtime]'"
                    ) from None
                self._compiler = cast("_Compiler", module.compiler(self._card.vocabulary))
            return self._compiler


class SimEngine:
    """Runs simulated models."""

    def __init__(self, options: EngineOptions) -> None:
        self._options = options
        self._limit_bytes = options.limit_bytes or DEFAULT_LIMIT_BYTES
        self._models: dict[str, SimModel] = {}

    @property
    def name(self) -> str:
        """The name used in settings."""
        return "sim"

    def load(self, spec: LoadSpec, card: ModelCard) -> SimModel:
        """Load a model.

        Raises:
            InputError: the directory describes no simulated model.
            NoMemoryError: it does not fit.
        """
        config = read(spec.path)
        for fault in config.faults:
            if fault.kind == "slow_load":
                time.sleep(parse_duration(fault.duration) / 1e9)
            if fault.kind == "load_memory":
                raise NoMemoryError(
                    "the simulated device refuses the model", mend="remove the fault from config.json"
                )
        taken = self.memory().active_bytes
        if taken + card.weights_bytes > self._limit_bytes:
            raise NoMemoryError(
                f"{spec.name!r} needs {card.weights_bytes:,} bytes; {taken:,} of {self._limit_bytes:,} are taken",
                mend="unload a model or raise the memory limit",
            )
        capabilities = card.capabilities if config.capabilities is None else config.capabilities
        if spec.draft is not None and "draft" not in capabilities:
            capabilities = (*capabilities, "draft")
        loaded = msgspec.structs.replace(
            card,
            name=spec.name,
            path=spec.path,
            capabilities=capabilities,
            weight_bits=spec.weight_bits,
            draft=spec.draft,
            context_tokens=spec.context_tokens or card.context_tokens,
        )
        model = SimModel(config, loaded, self._options, self._forget)
        self._models[spec.name] = model
        return model

    def memory(self) -> DeviceMemory:
        """Return what the device holds."""
        models = self._models.values()
        return DeviceMemory(
            active_bytes=sum(model.active_bytes for model in models),
            cached_bytes=sum(model.prefix_bytes for model in models),
            limit_bytes=self._limit_bytes,
        )

    def _forget(self, name: str) -> None:
        self._models.pop(name, None)
