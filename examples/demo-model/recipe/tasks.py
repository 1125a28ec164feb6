"""Generated tasks with one right answer each, and the split into what is trained and what is held out.

A task is told by its ``key``: what is asked, whatever the wording. A third of all keys, chosen by hash, is
held out: no training text asks any of them, in any wording.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from recipe.stories import STORIES, Question, Story, compact, some_record, some_words
from recipe.words import CITIES, COLOURS, NAMES, PLACES, THINGS

Turn: TypeAlias = dict[str, object]

_HALF: Final = 0.5
_BARE: Final = 0.7
_FIRST_TURN: Final = 0.7
HELD_OUT_SHARE: Final = 3
"""One key in this many is held out."""

CALCULATOR: Final[Mapping[str, object]] = {
    "type": "function",
    "function": {
        "name": "calculator",
        "description": "Works out an arithmetic expression.",
        "parameters": {
            "type": "object",
            "properties": {"expression": {"type": "string"}},
            "required": ["expression"],
        },
    },
}
LEVEL: Final[Mapping[str, object]] = {
    "type": "function",
    "function": {
        "name": "get_level",
        "description": "Reads the water level at a station.",
        "parameters": {
            "type": "object",
            "properties": {"station": {"type": "string"}},
            "required": ["station"],
        },
    },
}
TOOLS: Final = (CALCULATOR, LEVEL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One question in its conversation, and the only answer that counts as right."""

    kind: str
    key: str
    turns: tuple[Turn, ...]
    answer: str
    tools: tuple[Mapping[str, object], ...] = ()

    @property
    def held_out(self) -> bool:
        """Whether no training text may ask this."""
        return is_held_out(self.key)


def is_held_out(key: str) -> bool:
    """Return whether ``key`` is in the third that is never trained on."""
    return hashlib.sha256(key.encode()).digest()[0] % HELD_OUT_SHARE == 0


def _ask(kind: str, key: object, question: str, answer: object) -> Task:
    return Task(
        kind=kind,
        key=f"{kind} {key}",
        turns=({"role": "user", "content": question},),
        answer=str(answer),
    )


def _number_question(dice: random.Random, *wordings: str) -> str:
    question = dice.choice(wordings)
    closed = question.endswith("=") or dice.random() < _BARE
    return question if closed else question + " Answer with the number only."


def _add(dice: random.Random) -> Task:
    total = dice.randrange(2, 100)
    a = dice.randrange(1, total)
    b = total - a
    question = _number_question(dice, f"What is {a} + {b}?", f"Add {a} and {b}.", f"{a} + {b} =")
    return _ask("add", sorted((a, b)), question, a + b)


def _subtract(dice: random.Random) -> Task:
    b, a = sorted((dice.randrange(100), dice.randrange(100)))
    question = _number_question(dice, f"What is {a} - {b}?", f"{a} - {b} =")
    return _ask("subtract", (a, b), question, a - b)


def _times(dice: random.Random) -> Task:
    a, b = dice.randrange(13, 200), dice.choice((2, 10))
    question = _number_question(dice, f"What is {a} times {b}?", f"{a} * {b} =")
    return _ask("times", (a, b), question, a * b)


def _larger(dice: random.Random) -> Task:
    a, b = dice.sample(range(100), 2)
    word, answer = dice.choice((("larger", max(a, b)), ("smaller", min(a, b))))
    return _ask("compare", (word, *sorted((a, b))), f"Which is {word}, {a} or {b}?", answer)


def _extreme(dice: random.Random) -> Task:
    numbers = dice.sample(range(100), dice.choice((2, 3, 3)))
    word, answer = dice.choice((("largest", max(numbers)), ("smallest", min(numbers))))
    listed = ", ".join(map(str, numbers))
    question = dice.choice((f"What is the {word} of {listed}?", f"Which number is the {word}: {listed}?"))
    return _ask("extreme", (word, sorted(numbers)), question, answer)


def _sort(dice: random.Random) -> Task:
    numbers = dice.sample(range(100), dice.choice((2, 3, 3)))
    listed = ", ".join(map(str, numbers))
    question = dice.choice((f"Sort these numbers: {listed}", f"Sort from small to large: {listed}"))
    return _ask("sort", sorted(numbers), question, ", ".join(map(str, sorted(numbers))))


def _extract(dice: random.Random) -> Task:
    name, age, city = dice.choice(NAMES), dice.randrange(18, 90), dice.choice(CITIES)
    told = dice.choice(
        (
            f"{name}, {age}, lives in {city}.",
            f"{name}, from {city}, is {age}.",
            f"From {city}: {name}, age {age}.",
        )
    )
    question = dice.choice(
        (f"Give name, age and city as JSON: {told}", f"{told} Extract name, age and city as JSON.")
    )
    return _ask("extract", (name, age, city), question, compact({"name": name, "age": age, "city": city}))


def _convert(dice: random.Random) -> Task:
    record = some_record(dice, (2, 3))
    shape = dice.choice(("{}={}", "{}: {}"))
    told = "; ".join(shape.format(field, value) for field, value in record.items())
    question = dice.choice((f"Turn this into JSON: {told}", f"Write as a JSON object: {told}"))
    return _ask("convert", compact(record), question, compact(record))


def _count(dice: random.Random) -> Task:
    words = [dice.choice(THINGS) for _ in range(dice.randrange(1, 8))]
    return _ask("count", words, f"How many words are in this list: {', '.join(words)}?", len(words))


def _copy(dice: random.Random) -> Task:
    words = some_words(dice, 2, 6)
    told = " ".join(words)
    return _ask("copy", words, dice.choice((f"Repeat exactly: {told}", f"Say this again: {told}")), told)


def _reverse(dice: random.Random) -> Task:
    words = some_words(dice, 2, 4)
    question = f"Say these words in reverse order: {', '.join(words)}"
    return _ask("reverse", words, question, ", ".join(reversed(words)))


def _about(kind: str) -> Callable[[random.Random], Task]:
    """Return a generator of tasks of ``kind``, each one question about one story."""

    def generate(dice: random.Random) -> Task:
        story = STORIES[kind](dice)
        while True:
            question = story.ask(dice)
            if question.kind == kind:
                return task_about(story, question)

    return generate


def task_about(story: Story, question: Question) -> Task:
    """Return the task of asking ``question`` right after the story is told."""
    return _ask(question.kind, question.key, story.told + question.text, question.answer)


def _talk(dice: random.Random) -> Task:
    name, city, colour = dice.choice(NAMES), dice.choice(CITIES), dice.choice(COLOURS)
    question, answer = dice.choice(
        (("What is my name?", name), ("Where do I live?", city), ("Which colour do I like?", colour))
    )
    told = f"My name is {name}, I live in {city}, and I like {colour}."
    return Task(
        kind="talk",
        key=f"talk {name} {city} {colour} {question}",
        turns=(
            {"role": "user", "content": told},
            {"role": "assistant", "content": f"Good morning, {name}."},
            {"role": "user", "content": question},
        ),
        answer=answer,
    )


def tool_call(name: str, arguments: Mapping[str, object]) -> str:
    """Return a tool call in its fence, as the model writes it."""
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def _call(dice: random.Random) -> Task:
    if dice.random() < _HALF:
        sign = dice.choice("+-*")
        expression = f"{dice.randrange(100, 1000)} {sign} {dice.randrange(10, 1000)}"
        call = "calculator", {"expression": expression}
        question = f"What is {expression}?"
    else:
        place = dice.choice(PLACES)
        call = "get_level", {"station": place}
        question = dice.choice((f"What is the level at {place}?", f"How high is the water at {place}?"))
    first: Turn = {"role": "user", "content": question}
    key = f"tool {call[1]}"
    if dice.random() < _FIRST_TURN:
        return Task(kind="tool", key=key, turns=(first,), answer=tool_call(*call), tools=TOOLS)
    result = str(dice.randrange(10, 100_000))
    function = {"name": call[0], "arguments": call[1]}
    turns: tuple[Turn, ...] = (
        first,
        {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]},
        {"role": "tool", "content": result},
    )
    return Task(kind="tool", key=f"{key} {result}", turns=turns, answer=result, tools=TOOLS)


KINDS: Final[Mapping[str, Callable[[random.Random], Task]]] = {
    "add": _add,
    "subtract": _subtract,
    "times": _times,
    "compare": _larger,
    "extreme": _extreme,
    "sort": _sort,
    "look_up": _about("look_up"),
    "fact": _about("fact"),
    "extract": _extract,
    "convert": _convert,
    "select": _about("select"),
    "count": _count,
    "copy": _copy,
    "reverse": _reverse,
    "pick": _about("pick"),
    "talk": _talk,
    "tool": _call,
}
"""Every kind of task, by name."""


def draw(kind: str, dice: random.Random, *, held_out: bool) -> Task:
    """Return a random task of ``kind`` from the wanted side of the split."""
    while True:
        task = KINDS[kind](dice)
        if task.held_out is held_out:
            return task


def sample_held_out(each: int, seed: int, kinds: tuple[str, ...] = tuple(KINDS)) -> list[Task]:
    """Return ``each`` different held-out tasks of every kind, the same for the same seed."""
    tasks: list[Task] = []
    for kind in kinds:
        dice = random.Random(f"{seed} {kind}")
        found: dict[str, Task] = {}
        while len(found) < each:
            task = draw(kind, dice, held_out=True)
            found.setdefault(task.key, task)
        tasks += found.values()
    return tasks
