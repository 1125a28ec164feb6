"""What each rung does to a request: refuse it, in whole or for what it asks, or make less of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, TypeAlias, assert_never

import msgspec

from tokenweir.core.errors import BrownedOutError
from tokenweir.gateway.brownout.settings import Does, Feature, RungSettings
from tokenweir.gateway.direct.body import read
from tokenweir.ports.access import Caller

_LENGTHS: Final = ("max_completion_tokens", "max_tokens", "max_output_tokens")


class RefuseFeatures(msgspec.Struct, frozen=True, kw_only=True, tag="refuse_features"):
    """Refuse requests that ask for something costly."""

    features: tuple[Feature, ...]
    retry_after_ns: int


class Shorter(msgspec.Struct, frozen=True, kw_only=True, tag="shorter"):
    """Bound the length of answers."""

    max_tokens: int


class FasterModel(msgspec.Struct, frozen=True, kw_only=True, tag="faster_model"):
    """Ask another model, where the caller may."""

    models: dict[str, str]


class Queue(msgspec.Struct, frozen=True, kw_only=True, tag="queue"):
    """Let direct requests wait their turn in the queue."""

    deadline_ns: int | None


class Refuse(msgspec.Struct, frozen=True, kw_only=True, tag="refuse"):
    """Refuse requests."""

    status: int
    retry_after_ns: int


Measure: TypeAlias = RefuseFeatures | Shorter | FasterModel | Queue | Refuse


class Rung(msgspec.Struct, frozen=True, kw_only=True):
    """A measure and whom it touches: not ``exempt`` tiers, nor callers above ``priority``; which paths."""

    does: Does
    measure: Measure
    exempt: frozenset[str] = frozenset()
    priority: int = 9
    direct: bool = True
    queued: bool = True

    def touches(self, caller: Caller, *, queued: bool) -> bool:
        """Whether a caller's request is touched."""
        if caller.tier in self.exempt or caller.priority > self.priority:
            return False
        return self.queued if queued else self.direct


class Lessened(msgspec.Struct, frozen=True, kw_only=True):
    """What is left of a request: its body, what was done to it, and whether it waits in the queue."""

    raw: bytes
    what: tuple[str, ...] = ()
    does: tuple[Does, ...] = ()
    queue: Queue | None = None


def rung_of(settings: RungSettings) -> Rung:
    """Return the rung that settings describe."""
    return Rung(
        does=settings.does,
        measure=_measure(settings),
        exempt=frozenset(settings.exempt),
        priority=settings.priority,
        direct="direct" in settings.paths,
        queued="queued" in settings.paths and settings.does != "queue",
    )


def _measure(settings: RungSettings) -> Measure:
    match settings.does:
        case "refuse_features":
            return RefuseFeatures(features=settings.features, retry_after_ns=settings.retry_after)
        case "shorter":
            return Shorter(max_tokens=settings.max_tokens or 1)
        case "faster_model":
            return FasterModel(models=dict(settings.models))
        case "queue":
            return Queue(deadline_ns=settings.deadline)
        case "refuse":
            return Refuse(status=settings.status, retry_after_ns=settings.retry_after)


def lessen(rungs: Sequence[Rung], caller: Caller, raw: bytes, *, queued: bool) -> Lessened:
    """Return what rungs leave of a request. One that none of them changes keeps its very bytes.

    Raises:
        ParameterError: the body cannot be used.
        BrownedOutError: it is refused for now.
    """
    touching = [rung for rung in rungs if rung.touches(caller, queued=queued)]
    if not touching:
        return Lessened(raw=raw)
    read(raw)
    fields: dict[str, Any] = msgspec.json.decode(raw)
    what: dict[str, str] = {}
    does: list[Does] = []
    queue: Queue | None = None
    for rung in touching:
        measure = rung.measure
        match measure:
            case Refuse():
                raise _refused("requests are refused", measure.retry_after_ns, "refused", measure.status)
            case RefuseFeatures():
                _need_plain(measure, fields)
                continue
            case Shorter():
                told = _shorten(measure, fields)
            case FasterModel():
                told = _replace_model(measure, fields, caller)
            case Queue():
                # An answer told from its events holds no log probabilities; such a request stays as it is.
                told = "" if asks(fields, "logprobs") else "queued"
                queue = measure if told else queue
            case _:
                assert_never(measure)
        if told:
            what[rung.does] = told
            does.append(rung.does)
    changed = bool(set(what) - {"queue"})
    return Lessened(
        raw=msgspec.json.encode(fields) if changed else raw,
        what=tuple(what.values()),
        does=tuple(dict.fromkeys(does)),
        queue=queue,
    )


def asks(fields: dict[str, Any], feature: Feature) -> bool:
    """Whether a body asks for something costly."""
    if feature == "logprobs":
        # Chat asks with true and top_logprobs, completions with a number, of which 0 is one more than none.
        asked = fields.get("logprobs")
        return (asked is not None and asked is not False) or bool(fields.get("top_logprobs"))
    value = fields.get(feature)
    return isinstance(value, int) and value > 1


def _need_plain(measure: RefuseFeatures, fields: dict[str, Any]) -> None:
    for feature in measure.features:
        if asks(fields, feature):
            raise _refused(
                f"requests with {feature} are refused",
                measure.retry_after_ns,
                f"refused={feature}",
                503,
                f"leave {feature} out, or ",
            )


def _refused(what: str, retry_after_ns: int, degraded: str, status: int, first: str = "") -> BrownedOutError:
    seconds = max(1, -(-retry_after_ns // 1_000_000_000))
    return BrownedOutError(
        f"{what} for now: the service is under more load than it can serve in time",
        mend=f"{first}try again in {seconds} s",
        degraded=degraded,
        status=status,
        retry_after_ns=retry_after_ns,
    )


def _shorten(measure: Shorter, fields: dict[str, Any]) -> str:
    if "messages" not in fields and "prompt" not in fields and "max_output_tokens" not in fields:
        return ""
    named = [name for name in _LENGTHS if fields.get(name) is not None]
    if named and fields[named[0]] <= measure.max_tokens:
        return ""
    for name in named or ("max_tokens",):
        fields[name] = min(measure.max_tokens, fields.get(name) or measure.max_tokens)
    return f"max_tokens={measure.max_tokens}"


def _replace_model(measure: FasterModel, fields: dict[str, Any], caller: Caller) -> str:
    faster = measure.models.get(fields["model"])
    if faster is None or not caller.may_ask(faster):
        return ""
    fields["model"] = faster
    return f"model={faster}"
