"""One benchmark from options to a finished record."""

from __future__ import annotations

import contextlib
import shutil
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

from tokenweir.bench.engine.stamps import StampSwitch
from tokenweir.bench.live import SilentView, View
from tokenweir.bench.measure import begin, measure
from tokenweir.bench.options import BenchOptions
from tokenweir.bench.records.rundir import LOG_FILE, make_run_dir
from tokenweir.bench.reserve import Reserve
from tokenweir.bench.settings import Settings
from tokenweir.core.errors import (
    DiskFullError,
    EndpointError,
    NoResultError,
    OverloadedError,
    ProtocolError,
    RefusedError,
    UnreachableError,
    UpstreamError,
    WeirError,
)
from tokenweir.core.ids import new_id
from tokenweir.telemetry.logs import also_to_file, get_logger

if TYPE_CHECKING:
    from types import ModuleType

    from tokenweir.bench.closing import Closed

_LOG = get_logger("tokenweir.bench")
_BY_CODE: Final[dict[str, type[EndpointError]]] = {
    error.code: error
    for error in (UnreachableError, RefusedError, OverloadedError, UpstreamError, ProtocolError)
}


def run_bench(
    options: BenchOptions,
    settings: Settings,
    *,
    runs_dir: Path,
    view: View | None = None,
    portable: bool = False,
) -> Closed:
    """Measure, write the run directory and its report, and return the record.

    ``portable`` measures as on a system without kernel timestamps and epoll.

    Raises:
        EndpointError: the endpoint cannot be reached or refuses; nothing is written.
        InputError: the options cannot be used; nothing is written.
        DiskFullError: there is too little room to begin with; nothing is written.
        KeyboardInterrupt: the user asked twice to stop.
    """
    with contextlib.ExitStack() as stack:
        switch = stack.enter_context(contextlib.closing(StampSwitch()))
        measurement, ready = begin(
            options, settings, kernel_stamps=switch.on and not portable, portable=portable
        )
        run_id = new_id("run")
        measurement.run_dir = make_run_dir(options.out or runs_dir / run_id)
        stack.enter_context(also_to_file(measurement.run_dir / LOG_FILE, "debug"))
        _LOG.debug("run started", run_id=run_id, **measurement.public_facts())
        try:
            with Reserve(measurement.run_dir):
                measure(measurement, ready, view or SilentView())
        except DiskFullError:
            shutil.rmtree(measurement.run_dir, ignore_errors=True)
            raise
        if not measurement.points:
            shutil.rmtree(measurement.run_dir, ignore_errors=True)
            raise measurement.failure or NoResultError("the run ended before its first load point")
        closing = _late("tokenweir.bench.closing")
        closed = cast("Closed", closing.close(measurement, run_id))
        for kind, text in closed.messages.items():
            _LOG.debug("requests failed", kind=kind, first_message=text)
        for note in closed.run.notes:
            _LOG.debug("note", text=note)
        _late("tokenweir.bench.report").render(closed.run_dir)
        _LOG.debug("run ended", run_id=run_id, status=closed.run.status)
    return closed


def failure_of(closed: Closed) -> WeirError | None:
    """Return the error that a record without one completed request comes to; ``None`` when some completed."""
    counts = [load.summary.counts for load in closed.run.loads]
    if any(count.completed for count in counts) or closed.run.status == "cancelled":
        return None
    errors: dict[str, int] = {}
    for count in counts:
        for kind, number in count.errors.items():
            errors[kind] = errors.get(kind, 0) + number
    if not errors:
        return NoResultError("no request was sent", mend="give the run more time or requests")
    kind = max(errors, key=errors.__getitem__)
    what, _, mend = closed.messages.get(kind, "").partition("; ")
    message = f"no request completed: {errors[kind]} × {kind}: {what}"
    error = _BY_CODE.get(kind)
    return (
        error(message, mend=mend)
        if error is not None
        else NoResultError(message, mend=mend or "see the report")
    )


def _late(module: str) -> ModuleType:
    # Arrow and the report cost a quarter of a second and 60 MB, which a run must not pay before its first request.
    return import_module(module)
