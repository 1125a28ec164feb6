"""Finding the first of some strings in text that comes in pieces, across their borders."""

from __future__ import annotations

from collections.abc import Sequence


def partial(text: str, marks: Sequence[str]) -> int:
    """Return the length of the longest end of ``text`` that begins one of ``marks`` without being all of it."""
    longest = 0
    for mark in marks:
        reach = min(len(mark) - 1, len(text))
        if mark[0] not in text[-reach:]:
            continue
        for length in range(reach, longest, -1):
            if text.endswith(mark[:length]):
                longest = length
                break
    return longest


class StopMatcher:
    """Passes text on up to the first stop string, which it keeps.

    Text is held back only while it may be the beginning of a stop string. Of several, the one that is whole first
    counts, and of those the longest: so the answer does not depend on how the text was cut.
    """

    __slots__ = ("_held", "_stops", "hit")

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held: str = ""
        self.hit = ""

    def feed(self, text: str) -> str:
        """Return what is certain to belong to the answer. After a hit nothing more does."""
        if self.hit:
            return ""
        text = self._held + text
        places = [(text.find(stop), stop) for stop in self._stops]
        found = [(at + len(stop), at, stop) for at, stop in places if at >= 0]
        if found:
            _, at, self.hit = min(found)
            self._held = ""
            return text[:at]
        held = partial(text, self._stops)
        if not held:
            self._held = ""
            return text
        self._held = text[-held:]
        return text[:-held]

    def finish(self) -> str:
        """Return what was held back: no stop string came of it."""
        held, self._held = self._held, ""
        return held
