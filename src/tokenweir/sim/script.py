"""Scripted replies: what to answer to which prompt, one rule per line of a JSONL file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import msgspec

from tokenweir.core.errors import ConfigError
from tokenweir.core.requests import Json
from tokenweir.sim.distributions import Table, durations
from tokenweir.sim.faults import Fault, parse_fault
from tokenweir.sim.pieces import Call, Reply


class _Match(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    exact: str | None = None
    contains: str | None = None
    regex: str | None = None


class _ToolCall(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    arguments: dict[str, Json] | str = {}


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    match: _Match = _Match()
    text: str = ""
    reasoning: str = ""
    tool_calls: list[_ToolCall] = []
    finish_reason: Literal["stop", "length", "tool_calls", "content_filter"] | None = None
    ttft: str | None = None
    itl: str | None = None
    fault: str | None = None


class Entry(msgspec.Struct, frozen=True):
    """One rule: the prompts it is for and what they get. ``None`` leaves it to the options."""

    exact: str | None
    contains: str | None
    regex: re.Pattern[str] | None
    reply: Reply
    ttft: Table | None
    itl: Table | None
    fault: Fault | None

    def matches(self, text: str) -> bool:
        """Return whether every condition holds; a rule without conditions matches everything."""
        if self.exact is not None and text != self.exact:
            return False
        if self.contains is not None and self.contains not in text:
            return False
        return self.regex is None or self.regex.search(text) is not None


def read_script(path: str | None, *, seed: int) -> tuple[Entry, ...]:
    """Return the rules of a script; none without a path. Raises ConfigError naming file, line and reason."""
    if path is None:
        return ()
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"the script {path!r} cannot be read: {error}", mend="mend the path or the file"
        ) from None
    entries: list[Entry] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entries.append(_entry(msgspec.json.decode(line, type=_Line), seed))
        except (msgspec.DecodeError, re.error, ConfigError) as error:
            raise ConfigError(
                f"{path}:{number}: {error}", mend="see docs/simulator.md, scripted replies"
            ) from None
    return tuple(entries)


def _entry(line: _Line, seed: int) -> Entry:
    calls = tuple(
        Call(
            one.name,
            one.arguments if isinstance(one.arguments, str) else msgspec.json.encode(one.arguments).decode(),
        )
        for one in line.tool_calls
    )
    reply = Reply(
        text=line.text,
        reasoning=line.reasoning,
        calls=calls,
        finish_reason=line.finish_reason or ("tool_calls" if calls else "stop"),
    )
    return Entry(
        exact=line.match.exact,
        contains=line.match.contains,
        regex=re.compile(line.match.regex) if line.match.regex is not None else None,
        reply=reply,
        ttft=durations(line.ttft, what="ttft", seed=seed) if line.ttft else None,
        itl=durations(line.itl, what="itl", seed=seed) if line.itl else None,
        fault=parse_fault(line.fault) if line.fault else None,
    )
