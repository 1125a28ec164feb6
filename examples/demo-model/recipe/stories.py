"""Stories of a few facts, about which several questions can be asked: tables, likings, records, lists.

An answer repeats what was asked for, ``Orrin: 83``: what follows a word that was said before is the first thing
that a small model learns to find again.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from recipe.words import (
    CITIES,
    COLOURS,
    FIELDS,
    NAMES,
    NUMBER_FIELDS,
    ORDINALS,
    PLACES,
    THINGS,
)

_HALF: Final = 0.5


@dataclass(frozen=True, slots=True)
class Question:
    """A question about a story. ``key`` holds the story too, so that no two stories share one."""

    kind: str
    key: object
    text: str
    answer: object


@dataclass(frozen=True, slots=True)
class Story:
    """``told`` ends where a question can follow it; ``ask`` draws one of its questions."""

    told: str
    ask: Callable[[random.Random], Question]


def compact(value: object) -> str:
    """Return ``value`` as JSON without white space."""
    return json.dumps(value, separators=(",", ":"))


def some_words(dice: random.Random, low: int, high: int) -> list[str]:
    """Return from ``low`` to ``high`` different words."""
    return dice.sample(COLOURS + THINGS, dice.randrange(low, high + 1))


def some_record(dice: random.Random, counts: tuple[int, ...]) -> dict[str, str | int]:
    """Return a JSON object with one of ``counts`` fields."""
    return {field: _value(field, dice) for field in dice.sample(FIELDS, dice.choice(counts))}


def _value(field: str, dice: random.Random) -> str | int:
    if field in NUMBER_FIELDS:
        return dice.randrange(1, 100)
    values = {"city": CITIES, "colour": COLOURS, "item": THINGS, "name": NAMES, "station": PLACES}
    return dice.choice(values[field])


def _table(dice: random.Random) -> Story:
    places = dice.sample(PLACES, dice.choice((3, 4, 5)))
    rows = list(zip(places, dice.sample(range(10, 100), len(places)), strict=True))
    if dice.random() < _HALF:
        told = "".join(f"{place}: {level}\n" for place, level in rows)
    else:
        told = "Levels. " + "; ".join(f"{place}: {level}" for place, level in rows) + ". "

    def ask(dice: random.Random) -> Question:
        place, level = dice.choice(rows)
        return Question("look_up", (rows, place), f"What is the level at {place}?", f"{place}: {level}")

    return Story(told, ask)


def _facts(dice: random.Random) -> Story:
    count = dice.choice((2, 3, 4))
    if dice.random() < _HALF:
        pairs = list(zip(dice.sample(NAMES, count), dice.sample(COLOURS, count), strict=True))
        told, asked = "{} likes {}.", "Which colour does {} like?"
    else:
        pairs = list(zip(dice.sample(PLACES, count), dice.sample(CITIES, count), strict=True))
        told, asked = "{} has the capital {}.", "Which capital does {} have?"

    def ask(dice: random.Random) -> Question:
        pair = dice.choice(pairs)
        return Question("fact", (pairs, pair[0]), asked.format(pair[0]), told.format(*pair))

    return Story("".join(told.format(*pair) + " " for pair in pairs), ask)


def _record(dice: random.Random) -> Story:
    record = some_record(dice, (2, 3, 4))

    def ask(dice: random.Random) -> Question:
        field = dice.choice(list(record))
        kept = compact({field: record[field]})
        return Question("select", (compact(record), field), f"Keep only the {field}.", kept)

    return Story(compact(record) + "\n", ask)


def _list(dice: random.Random) -> Story:
    words = some_words(dice, 3, 6)

    def ask(dice: random.Random) -> Question:
        place = dice.choice(ORDINALS)
        word = words[-1 if place == "last" else ORDINALS.index(place)]
        return Question("pick", (place, words), f"What is the {place} word?", word)

    return Story(f"Words: {', '.join(words)}. ", ask)


STORIES: Final[Mapping[str, Callable[[random.Random], Story]]] = {
    "look_up": _table,
    "fact": _facts,
    "select": _record,
    "pick": _list,
}
"""What is told for a task of each of these kinds."""
