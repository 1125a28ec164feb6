"""Finding what is not to be shown in text, whole or as it streams: the same is found wherever text is cut."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

import msgspec

_CONTEXT: Final = 64
"""Characters before the place of the search that are kept, for what looks behind."""
_STRETCH: Final = 16
_RADIX: Final = 36
_IBAN_REST: Final = 97


class Pattern(msgspec.Struct, frozen=True, kw_only=True):
    """What is found, and a ``check`` that decides where the look alone does not."""

    name: str
    expression: re.Pattern[str]
    check: Callable[[str], bool] | None = None


class Found(NamedTuple):
    """A stretch of a text that a pattern matches."""

    start: int
    end: int
    name: str


def luhn(text: str) -> bool:
    """Whether the digits are a card's number. Source: ISO/IEC 7812-1, annex B."""
    digits = [int(letter) for letter in text if letter.isdigit()]
    doubled = [digit * 2 - 9 if digit > 4 else digit * 2 for digit in digits[-2::-2]]  # noqa: PLR2004 - two digits add up
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def iban(text: str) -> bool:
    """Whether the check digits are those of an account. Source: ISO 13616-1 with ISO/IEC 7064 MOD 97-10."""
    plain = "".join(text.split())
    return int("".join(str(int(letter, _RADIX)) for letter in plain[4:] + plain[:4])) % _IBAN_REST == 1


_KEY: Final = (
    r"[spr]k[-_][A-Za-z0-9_-]{16,100}|weir_[A-Za-z0-9_-]{20,100}"
    r"|AKIA[A-Z0-9]{16}|gh[pousr]_[A-Za-z0-9]{36,100}"
)
_OCTET: Final = r"(?:25[0-5]|2[0-4]\d|1?\d?\d)"

BUILT_IN: Final[Mapping[str, Pattern]] = {
    name: Pattern(name=name, expression=re.compile(expression, re.ASCII), check=check)
    for name, expression, check in (
        (
            "email",
            r"[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9](?:[A-Za-z0-9-]{0,62}\.){1,8}[A-Za-z]{2,24}\b",
            None,
        ),
        ("card", r"(?<![\d.])\d(?:[ -]?\d){12,18}(?![\d])", luhn),
        ("iban", r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b", iban),
        ("ipv4", rf"(?<![\d.])(?:{_OCTET}\.){{3}}{_OCTET}(?!\.?\d)", None),
        ("phone", r"(?<![\w+])\+\d(?:[ ()./-]{0,2}\d){7,14}(?!\d)", None),
        (
            "secret",
            rf"\b(?:{_KEY})",
            None,
        ),
    )
}
"""Patterns by the names that settings call them by."""


class Redactor:
    """Replaces what patterns match, from the left, the longest first where several begin at one place.

    In ``replacement`` the text ``{name}`` stands for the pattern's name. In a stream a match of up to ``longest``
    characters is found wherever it is cut.
    """

    def __init__(self, patterns: Sequence[Pattern], *, replacement: str, longest: int) -> None:
        self._patterns = tuple(patterns)
        self._replacement = replacement
        self.longest = longest

    def put(self, found: Found) -> str:
        """Return what stands in the place of a match."""
        return self._replacement.replace("{name}", found.name)

    def whole(self, text: str) -> str:
        """Return a whole text without what is matched."""
        pieces: list[str] = []
        at = 0
        for found in self.all(text):
            pieces += (text[at : found.start], self.put(found))
            at = found.end
        return "".join((*pieces, text[at:])) if pieces else text

    def all(self, text: str) -> list[Found]:
        """Return the matches of a whole text, in order."""
        matches: list[Found] = []
        at = 0
        scan = Scan(self._patterns, text)
        while (found := scan.next(at)) is not None:
            matches.append(found)
            at = found.end
        return matches

    def scan(self, text: str) -> Scan:
        """Return a search through a text."""
        return Scan(self._patterns, text)

    def stream(self) -> TextStream:
        """Return a text that comes in pieces."""
        return TextStream(self)


class Scan:
    """The matches of a text from any place on; what was found beyond it is not looked for again."""

    def __init__(self, patterns: Sequence[Pattern], text: str) -> None:
        self._patterns = patterns
        self._text = text
        self._next: dict[str, Found | None] = {}

    def next(self, at: int) -> Found | None:
        """Return the first match that begins at ``at`` or later; places do not go back."""
        best: Found | None = None
        for pattern in self._patterns:
            found = self._next.get(pattern.name)
            if pattern.name not in self._next or (found is not None and found.start < at):
                found = self._next[pattern.name] = self._search(pattern, at)
            if found is not None and (best is None or (found.start, -found.end) < (best.start, -best.end)):
                best = found
        return best

    def _search(self, pattern: Pattern, at: int) -> Found | None:
        while (match := pattern.expression.search(self._text, at)) is not None:
            at = match.start() + 1
            if match.end() > match.start() and (pattern.check is None or pattern.check(match[0])):
                return Found(match.start(), match.end(), pattern.name)
        return None


class TextStream:
    """A text that comes in pieces. As much of its end is held back as may still turn out to be a match."""

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor
        self._text = ""
        self._at = 0

    def feed(self, text: str) -> str:
        """Return what can go on now that ``text`` has come."""
        self._text += text
        longest = self._redactor.longest
        horizon = len(self._text) - longest
        if horizon <= self._at:
            return ""
        pieces: list[str] = []
        scan = self._redactor.scan(self._text)
        while True:
            found = scan.next(self._at)
            if found is None or found.start >= horizon:
                pieces.append(self._text[self._at : max(self._at, horizon)])
                self._at = max(self._at, horizon)
                break
            pieces.append(self._text[self._at : found.start])
            self._at = found.start
            if found.end == len(self._text) and found.end - found.start < _STRETCH * longest:
                # It may go on.
                break
            pieces.append(self._redactor.put(found))
            self._at = found.end
        self._forget()
        return "".join(pieces)

    def flush(self) -> str:
        """Return the rest: nothing more comes."""
        pieces: list[str] = []
        scan = self._redactor.scan(self._text)
        while (found := scan.next(self._at)) is not None:
            pieces += (self._text[self._at : found.start], self._redactor.put(found))
            self._at = found.end
        pieces.append(self._text[self._at :])
        self._at = len(self._text)
        self._forget()
        return "".join(pieces)

    def _forget(self) -> None:
        cut = self._at - _CONTEXT
        if cut > _CONTEXT:
            self._text = self._text[cut:]
            self._at -= cut
