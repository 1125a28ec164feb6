"""Which models should be loaded, and which of them the present process has: what a restart must put right. Sans-IO.

::

    Absent ─▶ Loading ─▶ Loaded           Loading ─▶ Refused (the engine said no)
      ▲          │          │             Loading ─▶ Suspect (the process was lost twice at it)
      └──────────┴── lost ──┘
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, TypeAlias, assert_never

import msgspec

from tokenweir.core.errors import EngineError, ModelNotLoadedError, WeirError
from tokenweir.ports.inference import LoadSpec, ModelCard

MAX_CRASHES: Final = 2
"""Processes that may be lost while loading a model before it is no longer loaded by itself."""


class Absent(msgspec.Struct, frozen=True, tag="absent"):
    """No process has it."""


class Loading(msgspec.Struct, frozen=True, tag="loading"):
    """The process ``epoch`` loads it."""

    epoch: int


class Loaded(msgspec.Struct, frozen=True, tag="loaded"):
    """The process ``epoch`` has it."""

    epoch: int


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """The engine would not load it."""

    error: WeirError


class Suspect(msgspec.Struct, frozen=True, tag="suspect"):
    """Loading it ended the process, more than once."""

    crashes: int


Presence: TypeAlias = Absent | Loading | Loaded | Refused | Suspect


class Model:
    """A model that is known: how it is loaded, what it is, whether it is wanted now, and where it stands.

    ``wanted`` models are loaded again after a restart. ``answered`` says that it made a token since it was loaded.
    """

    __slots__ = ("answered", "card", "crashes", "presence", "spec", "wanted")

    def __init__(self, spec: LoadSpec, card: ModelCard) -> None:
        self.spec = spec
        self.card = card
        self.presence: Presence = Absent()
        self.wanted = True
        self.answered = False
        self.crashes = 0

    @property
    def name(self) -> str:
        """What clients call it."""
        return self.spec.name

    def in_epoch(self, epoch: int) -> bool:
        """Return whether the process ``epoch`` has it."""
        return isinstance(self.presence, Loaded) and self.presence.epoch == epoch

    def refusal(self) -> WeirError | None:
        """Return why it is not loaded by itself; ``None`` where it may be."""
        match self.presence:
            case Refused(error=error):
                return error
            case Suspect(crashes=crashes):
                return EngineError(
                    f"the engine's process was lost {crashes} times while it loaded {self.name!r}",
                    mend="see the log; load the model again to try once more",
                )
            case Absent() | Loading() | Loaded():
                return None
            case _:
                assert_never(self.presence)


class Inventory:
    """The models that are known, in the order in which they came."""

    def __init__(self) -> None:
        self._models: dict[str, Model] = {}

    def __iter__(self) -> Iterator[Model]:
        return iter(tuple(self._models.values()))

    def __contains__(self, name: object) -> bool:
        return name in self._models

    def get(self, name: str) -> Model:
        """Return a model. Raises ModelNotLoadedError, with the names of those there are."""
        model = self._models.get(name)
        if model is None:
            known = ", ".join(map(repr, self._models)) or "none"
            raise ModelNotLoadedError(f"there is no model {name!r}", mend=f"known models: {known}")
        return model

    def put(self, spec: LoadSpec, card: ModelCard) -> Model:
        """Want a model, new or again; what kept it from being loaded before is forgiven."""
        model = self._models.get(spec.name)
        if model is None or model.spec != spec or model.card.revision != card.revision:
            model = self._models[spec.name] = Model(spec, card)
        elif model.refusal() is not None:
            model.presence = Absent()
            model.crashes = 0
        model.wanted = True
        return model

    def forget(self, name: str) -> None:
        """Know a model no longer."""
        self._models.pop(name, None)

    def missing(self, epoch: int) -> list[Model]:
        """Return the wanted models that the process ``epoch`` neither has nor loads, and that may be loaded."""
        return [
            model
            for model in self
            if model.wanted
            and not (isinstance(model.presence, Loading | Loaded) and model.presence.epoch == epoch)
            and model.refusal() is None
        ]

    def loading(self, model: Model, epoch: int) -> None:
        """The process ``epoch`` begins to load it."""
        model.presence = Loading(epoch=epoch)
        model.answered = False

    def loaded(self, model: Model, epoch: int, card: ModelCard) -> None:
        """The process ``epoch`` has loaded it; ``card`` is what it turned out to be."""
        if model.presence == Loading(epoch=epoch):
            model.presence = Loaded(epoch=epoch)
            model.card = card
            model.crashes = 0

    def refused(self, model: Model, epoch: int, error: WeirError) -> None:
        """The process ``epoch`` could not load it. What may succeed later leaves it absent."""
        if model.presence == Loading(epoch=epoch):
            model.presence = Absent() if error.retryable else Refused(error=error)

    def released(self, model: Model) -> None:
        """It was unloaded, and is not wanted until someone asks for it."""
        model.presence = Absent()
        model.wanted = False
        model.answered = False

    def lost(self, epoch: int) -> None:
        """The process ``epoch`` is gone, and with it what it had."""
        for model in self:
            match model.presence:
                case Loading(epoch=at) if at == epoch:
                    model.crashes += 1
                    again = model.crashes < MAX_CRASHES
                    model.presence = Absent() if again else Suspect(crashes=model.crashes)
                case Loaded(epoch=at) if at == epoch:
                    model.presence = Absent()
                    model.answered = False
                case _:
                    pass
