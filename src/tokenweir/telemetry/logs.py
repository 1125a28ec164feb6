"""Structured logs on standard error: lines for people on a terminal, JSON lines for machines.

Fields are named as OpenTelemetry names them (``gen_ai.*``) where it has a name. Secrets never leave: fields
that hold one by name, and what looks like one by shape, are replaced before anything is rendered.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, TextIO, cast

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

Format = Literal["auto", "console", "json"]
"""``auto`` is ``console`` on a terminal and ``json`` elsewhere."""

ROOT = "tokenweir"
"""The logger under which all of ours hang."""

REDACTED = "[redacted]"

_SECRET_FIELD = re.compile(
    r"(^|[_.-])(api[_-]?key|authorization|cookie|password|secret|token|key)$", re.IGNORECASE
)
_SECRET_SHAPE = re.compile(
    r"(?P<bearer>\bBearer\s+)\S+|(?P<userinfo>://[^/\s:@]*:)[^/\s@]+(?=@)|\b(?:sk|weir|hf|ghp)[-_][A-Za-z0-9_-]{16,}"
)


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """Return the logger called ``name``, which begins with ``tokenweir``. Costs nothing until it is used."""
    return cast("structlog.stdlib.BoundLogger", structlog.get_logger(name))


def configure(level: str = "info", log_format: Format = "auto", stream: TextIO | None = None) -> None:
    """Send log lines of ``level`` and above to ``stream`` (standard error); a later call replaces that."""
    out: TextIO = sys.stderr if stream is None else stream
    as_json = log_format == "json" or (log_format == "auto" and not out.isatty())
    renderer: Processor = (
        structlog.processors.JSONRenderer()
        if as_json
        else structlog.dev.ConsoleRenderer(
            colors=out.isatty(), exception_formatter=structlog.dev.plain_traceback, pad_event_to=0
        )
    )
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *_shared_processors(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(_formatter(renderer, tracebacks_as_text=as_json))
    handler.setLevel(level.upper())
    root = logging.getLogger()
    for old in [one for one in root.handlers if getattr(one, "name", None) == ROOT]:
        root.removeHandler(old)
    handler.set_name(ROOT)
    root.addHandler(handler)
    logging.getLogger(ROOT).setLevel(level.upper())


@contextmanager
def also_to_file(path: Path, level: str = "info") -> Generator[None]:
    """Write log lines of ``level`` and above to ``path`` too, as JSON lines, while the block runs."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(_formatter(structlog.processors.JSONRenderer(), tracebacks_as_text=True))
    handler.setLevel(level.upper())
    ours = logging.getLogger(ROOT)
    before = ours.level
    ours.setLevel(min(before or logging.WARNING, handler.level))
    ours.addHandler(handler)
    try:
        yield
    finally:
        ours.removeHandler(handler)
        ours.setLevel(before)
        handler.close()


def redact(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Replace secrets in an event's fields, however deep they lie."""
    return {name: REDACTED if _is_secret(name, value) else _redacted(value) for name, value in event.items()}


def _shared_processors() -> list[Processor]:
    return [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]


def _formatter(renderer: Processor, *, tracebacks_as_text: bool) -> structlog.stdlib.ProcessorFormatter:
    text: list[Processor] = [structlog.processors.format_exc_info] if tracebacks_as_text else []
    return structlog.stdlib.ProcessorFormatter(
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *text, redact, renderer],
        foreign_pre_chain=_shared_processors(),
    )


def _is_secret(name: str, value: object) -> bool:
    return isinstance(value, str) and bool(value) and _SECRET_FIELD.search(name) is not None


def _redacted(value: object) -> object:
    if isinstance(value, str):
        return _SECRET_SHAPE.sub(_keep_frame, value)
    if isinstance(value, Mapping):
        fields = cast("Mapping[object, object]", value)
        return {
            name: REDACTED if isinstance(name, str) and _is_secret(name, inner) else _redacted(inner)
            for name, inner in fields.items()
        }
    if isinstance(value, list | tuple):
        return [_redacted(inner) for inner in cast("list[object]", value)]
    return value


def _keep_frame(match: re.Match[str]) -> str:
    """Keep the words around a secret, so that a reader sees what was there."""
    return f"{match['bearer'] or match['userinfo'] or ''}{REDACTED}"
