"""Kinds of processors by the name that ``use`` says, and lines of them as the settings have them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points
from typing import Final

from tokenweir.config import table
from tokenweir.core.clock import Clock, SystemClock
from tokenweir.core.errors import ConfigError
from tokenweir.gateway.pipeline import cache, hook, metadata, redact, route, template
from tokenweir.gateway.pipeline.line import Line, Place
from tokenweir.gateway.pipeline.processor import GROUP, Context, Kind, Stage
from tokenweir.gateway.pipeline.settings import ProcessorSettings

BUILT_IN: Final[Mapping[str, Kind]] = {
    "template": template.KIND,
    "redact": redact.KIND,
    "cache": cache.KIND,
    "metadata": metadata.KIND,
    "route": route.KIND,
    "hook": hook.KIND,
}


def kind_of(name: str, place: str) -> Kind:
    """Return a kind by its name. Raises ConfigError for one that is unknown or broken."""
    found = BUILT_IN.get(name)
    if found is not None:
        return found
    points = _points()
    point = points.get(name)
    if point is None:
        known = [*BUILT_IN, *sorted(set(points) - set(BUILT_IN))]
        near = get_close_matches(name, known, n=1)
        mend = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
        raise ConfigError(f"{place}: there is no processor {name!r}", mend=mend)
    try:
        loaded: object = point.load()
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"{place}: the processor {name!r} cannot be loaded from {point.value!r}: {error}",
            mend="install or mend the package that declares it",
        ) from error
    if not isinstance(loaded, Kind):
        raise ConfigError(
            f"{place}: {point.value!r} is no kind of processor", mend="see docs/gateway/pipelines.md"
        )
    return loaded


def line(
    stage: Stage,
    settings: Sequence[ProcessorSettings],
    *,
    models: Sequence[str] = (),
    clock: Clock | None = None,
) -> Line | None:
    """Return the processors of a stage; ``None`` where the settings have none.

    Raises ConfigError, naming the table, for an unknown kind or key, a value that does not fit, and a stage that it
    does not work in.
    """
    places: list[Place] = []
    for number, one in enumerate(settings):
        place = f"{stage}.pipeline[{number}]"
        kind = kind_of(one.use, place)
        if stage not in kind.stages:
            raise ConfigError(
                f"{place}: {one.use!r} does not work there",
                mend=f"it works in {', '.join(sorted(kind.stages))}",
            )
        own = table(kind.settings, one.own(), where=f"{place} ({one.use})")
        context = Context(
            stage=stage, clock=clock or SystemClock(), place=f"{place} ({one.use})", models=tuple(models)
        )
        places.append(Place(use=one.use, processor=kind.make(own, context), models=frozenset(one.models)))
    return Line(places) if places else None


def need_guards(gateway: Line | None, worker: Line | None) -> None:
    """Raise ConfigError where direct answers are guarded and queued ones are not."""
    if gateway is None or not gateway.guards_answers or (worker is not None and worker.guards_answers):
        return
    raise ConfigError(
        "gateway.pipeline redacts answers, and worker.pipeline does not: answers of queued requests, and of those"
        " with an idempotency key, would show what others do not",
        mend="redact answers in [[worker.pipeline]] too",
    )


def _points() -> Mapping[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}
