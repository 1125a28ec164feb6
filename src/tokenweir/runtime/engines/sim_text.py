"""What the simulated model says: a rule from all tokens so far to scores of the next, the same on every machine.

The rule sees the whole context, as a model does: the same prompt gets the same greedy answer, alone or in a batch,
and an answer that is continued goes on as it would have gone.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final, Protocol

import msgspec

from tokenweir.core.requests import Json
from tokenweir.ports.inference import Decoding
from tokenweir.runtime.engines.sim_tokens import EOS, PIECES, WORD_TOKENS

# Knuth's MMIX constants; the low bits of such a generator are poor, so choices are made by the high ones.
_FACTOR: Final = 6364136223846793005
_TERM: Final = 1442695040888963407
_ALL_BITS: Final = (1 << 64) - 1
_SHIFT: Final = 33

_CANDIDATES: Final = 16
_STEP: Final = 0.4
_SURE: Final = 40.0
"""Score of a token that must come: a bias of −100 still forbids it."""
_UNLISTED: Final = -20.0
_WORDS: Final = len(WORD_TOKENS)
_WORD_SET: Final = frozenset(WORD_TOKENS)
_CLOSERS: Final = (EOS, *(PIECES.index(one) for one in (b"}", b"]", b'"', b",", b":")))
_CLOSE_EVERY: Final = 4
_CLOSE_AFTER: Final = 24
_GUIDED_CANDIDATES: Final = 8
_MAX_DEPTH: Final = 8


class MaskBits(Protocol):
    """A bit for each token, lowest first: a NumPy array or anything like it."""

    def tobytes(self) -> bytes:
        """Return the bits, eight a byte."""
        ...


class Guide(Protocol):
    """Says which tokens may come next in one sequence."""

    def mask(self) -> MaskBits:
        """Return the tokens that may come now."""
        ...

    def accept(self, token: int) -> None:
        """Take note that ``token`` came."""
        ...

    @property
    def done(self) -> bool:
        """Whether only the end may come."""
        ...


def follow(state: int, token: int) -> int:
    """Return the state after ``token``."""
    return ((state ^ (token + 1)) * _FACTOR + _TERM) & _ALL_BITS


class Speaker:
    """Draws the tokens of one answer.

    ``script`` are tokens that must come first; the end comes ``length`` tokens after them.
    """

    __slots__ = ("_counts", "_decoding", "_guide", "_length", "_plain", "_rng", "_script", "drawn", "state")

    def __init__(
        self, state: int, decoding: Decoding, script: tuple[int, ...], length: int, guide: Guide | None
    ) -> None:
        self.state = state
        self.drawn = 0
        self._decoding = decoding
        self._script = script
        self._length = len(script) + length
        self._guide = guide
        self._rng = random.Random(decoding.seed) if decoding.temperature > 0 else None
        self._counts: dict[int, int] = {}
        self._plain = (
            decoding.temperature == 0
            and decoding.logprobs is None
            and guide is None
            and not decoding.logit_bias
            and decoding.repetition_penalty == 1
            and decoding.presence_penalty == 0
            and decoding.frequency_penalty == 0
        )

    def draw(self) -> tuple[int, float | None, tuple[tuple[int, float], ...]]:
        """Return the next token, its log probability and the best alternatives, where they were asked for."""
        if self._plain:
            token = self._greedy()
            self._take(token)
            return token, None, ()
        scores = self._scores() if self._guide is None else self._guided(self._guide)
        self._adjust(scores)
        token = self._choose(scores)
        self._take(token)
        wanted = self._decoding.logprobs
        if wanted is None:
            return token, None, ()
        total = math.log(math.fsum(math.exp(score - _SURE) for score in scores.values())) + _SURE
        best = sorted(scores.items(), key=_score, reverse=True)[:wanted]
        return token, scores[token] - total, tuple((one, score - total) for one, score in best)

    @property
    def _may_end(self) -> bool:
        return not self._decoding.ignore_eos and self.drawn >= self._decoding.min_tokens

    def _greedy(self) -> int:
        if self.drawn < len(self._script):
            return self._script[self.drawn]
        if self.drawn >= self._length and self._may_end:
            return EOS
        return WORD_TOKENS[(self.state >> _SHIFT) % _WORDS]

    def _take(self, token: int) -> None:
        self.drawn += 1
        self.state = follow(self.state, token)
        if not self._plain:
            self._counts[token] = self._counts.get(token, 0) + 1
            if self._guide is not None and token != EOS:
                self._guide.accept(token)

    def _scores(self) -> dict[int, float]:
        scores: dict[int, float] = {}
        if self.drawn < len(self._script):
            scores[self._script[self.drawn]] = _SURE
        elif self.drawn >= self._length:
            scores[EOS] = _SURE
        first = (self.state >> _SHIFT) % _WORDS
        for place in range(_CANDIDATES):
            scores.setdefault(WORD_TOKENS[(first + place) % _WORDS], -_STEP * place)
        for token, bias in self._decoding.logit_bias.items():
            scores[token] = scores.get(token, _UNLISTED) + bias
        if not self._may_end:
            scores.pop(EOS, None)
        return scores

    def _guided(self, guide: Guide) -> dict[int, float]:
        """Return scores of tokens that the guide allows: words where it can, and an early end of what could go on."""
        allowed = [token for token in _bits(guide.mask()) if token < len(PIECES)]
        choice = self.state >> _SHIFT
        close = choice % _CLOSE_EVERY == 0 or self.drawn > _CLOSE_AFTER
        scores: dict[int, float] = {}
        closer = next((token for token in _CLOSERS if token in allowed), None) if close else None
        if closer is not None:
            scores[closer] = _SURE
        open_ended = [token for token in allowed if token != EOS] or allowed
        pool = [token for token in open_ended if token in _WORD_SET] or open_ended or [EOS]
        for place in range(min(_GUIDED_CANDIDATES, len(pool))):
            scores.setdefault(pool[(choice + place) % len(pool)], -_STEP * place)
        for token, bias in self._decoding.logit_bias.items():
            if token in allowed:
                scores[token] = scores.get(token, _UNLISTED) + bias
        return scores

    def _adjust(self, scores: dict[int, float]) -> None:
        decoding = self._decoding
        for token in scores.keys() & self._counts.keys():
            score = scores[token]
            score = score / decoding.repetition_penalty if score > 0 else score * decoding.repetition_penalty
            scores[token] = (
                score - decoding.presence_penalty - decoding.frequency_penalty * self._counts[token]
            )

    def _choose(self, scores: Mapping[int, float]) -> int:
        if self._rng is None:
            return max(scores, key=scores.__getitem__)
        decoding = self._decoding
        ranked = sorted(scores.items(), key=_score, reverse=True)
        if decoding.top_k:
            ranked = ranked[: decoding.top_k]
        top = ranked[0][1]
        weights = [math.exp((score - top) / decoding.temperature) for _, score in ranked]
        floor = decoding.min_p * weights[0]
        total, reach, kept = sum(weights), 0.0, 0
        for weight in weights:
            if kept and (weight < floor or reach >= decoding.top_p * total):
                break
            reach += weight
            kept += 1
        return self._rng.choices([token for token, _ in ranked[:kept]], weights[:kept])[0]


def _score(item: tuple[int, float]) -> float:
    return item[1]


def _bits(mask: MaskBits) -> Iterator[int]:
    left = int.from_bytes(mask.tobytes(), "little")
    while left:
        lowest = left & -left
        yield lowest.bit_length() - 1
        left ^= lowest


def called(tools: Iterable[Mapping[str, Json]], question: str) -> str:
    """Return the tool calls that a question asks for by the tools' names, in this model's fences."""
    calls = [
        {"name": tool.get("name"), "arguments": example(tool.get("parameters"))}
        for tool in tools
        if str(tool.get("name")) in question
    ]
    return "".join(f"<tool_call>{msgspec.json.encode(call).decode()}</tool_call>" for call in calls)


def example(schema: Json, depth: int = 0) -> Json:
    """Return a small value that a JSON Schema allows, as far as types, enums and required members say."""
    if not isinstance(schema, dict) or depth > _MAX_DEPTH:
        return {}
    if "const" in schema:
        return schema["const"]
    options = schema.get("enum")
    if isinstance(options, list) and options:
        return options[0]
    members, items, least = schema.get("properties"), schema.get("items"), schema.get("minimum")
    simple: dict[str, Callable[[], Json]] = {
        "object": lambda: (
            {name: example(one, depth + 1) for name, one in members.items()}
            if isinstance(members, dict)
            else {}
        ),
        "array": lambda: [example(items, depth + 1)] if items else [],
        "integer": lambda: least if isinstance(least, int) else 1,
        "number": lambda: least if isinstance(least, int | float) else 1.5,
        "boolean": lambda: True,
        "null": lambda: None,
    }
    kind = schema.get("type", "object" if depth == 0 or members else "string")
    make = simple.get(kind) if isinstance(kind, str) else None
    return make() if make else "lake"
