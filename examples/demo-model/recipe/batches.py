"""Training data: an endless, seeded stream of batches of token ids with the positions that are learnt."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from recipe.stories import STORIES
from recipe.tasks import KINDS, Task, Turn, draw, task_about
from recipe.text import learnt, must_be_trained, prose
from recipe.vocabulary import ASSISTANT, END, render

Ints = npt.NDArray[np.int32]

WEIGHTS: Final[Mapping[str, float]] = {
    "add": 10.0,
    "subtract": 12.0,
    "times": 1.0,
    "extreme": 3.0,
    "sort": 5.0,
    "look_up": 5.0,
    "fact": 4.0,
    "select": 1.5,
    "convert": 1.5,
    "copy": 2.0,
    "count": 0.5,
    "talk": 0.5,
}
"""How often a kind is drawn; 1 where it is not named."""
_POOL: Final = 768
_PROSE_SHARE: Final = 0.03
_PROSE_WEIGHT: Final = 0.15
_LEARNT_SHARE: Final = 0.08
_SEVERAL_SHARE: Final = 0.2
_RETOLD_SHARE: Final = 0.6
_QUESTIONS: Final = 5
_LONG_SHARE: Final = 0.004
_PROSE_TOKENS: Final = 128
_LONG_TOKENS: Final = (300, 1000)
_ROUND: Final = 8


@dataclass(frozen=True, slots=True)
class Row:
    """Token ids of one conversation or piece of prose, the positions whose next token is learnt, how much."""

    ids: list[int]
    learnt: list[int]
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Batch:
    """``tokens`` is rows × length, filled up with zeros; ``places`` index its flat form.

    ``following`` is the token to be learnt at each place, and ``weights`` how much each counts.
    """

    tokens: Ints
    places: Ints
    following: Ints
    weights: npt.NDArray[np.float32]


class Rows:
    """Draws rows from a seed. A conversation may hold several tasks, and may follow a page of prose."""

    def __init__(self, tokenizer: Tokenizer, seed: int) -> None:
        self._tokenizer = tokenizer
        self._dice = random.Random(seed)
        self._prose = prose()
        self._prose_ids = [tokenizer.encode(text).ids for text in self._prose]
        self._learnt = learnt()
        self._kinds = list(KINDS)
        self._weights = [WEIGHTS.get(kind, 1.0) for kind in self._kinds]
        self._end = tokenizer.token_to_id(END)
        self._assistant = tokenizer.token_to_id(ASSISTANT)

    def draw(self) -> Row:
        """Return the next row."""
        dice, chance = self._dice, self._dice.random()
        if chance < _PROSE_SHARE:
            return self._piece_of_prose()
        chance -= _PROSE_SHARE
        if chance < _LEARNT_SHARE:
            return self._conversation([dice.choice(self._learnt)])
        chance -= _LEARNT_SHARE
        if chance < _LONG_SHARE:
            return self._conversation([self._task()], system=self._page())
        chance -= _LONG_SHARE
        if chance < _SEVERAL_SHARE:
            return self._conversation([self._task() for _ in range(dice.randrange(2, 6))])
        kind = self._kind()
        if kind in STORIES and dice.random() < _RETOLD_SHARE:
            return self._questions(kind)
        return self._conversation([draw(kind, dice, held_out=False)])

    def _kind(self) -> str:
        return self._dice.choices(self._kinds, self._weights)[0]

    def _task(self) -> Task:
        return draw(self._kind(), self._dice, held_out=False)

    def _questions(self, kind: str) -> Row:
        """Return one story and several questions about it, those left out that are held out."""
        story = STORIES[kind](self._dice)
        turns: list[Turn] = []
        for _ in range(_QUESTIONS):
            question = story.ask(self._dice)
            task = task_about(story, question)
            if not task.held_out:
                asked = question.text if turns else story.told + question.text
                turns.append({"role": "user", "content": asked})
                turns.append({"role": "assistant", "content": task.answer})
        return self.row(render(turns)) if turns else self._conversation([self._task()])

    def _page(self) -> str:
        wanted, text = self._dice.randrange(*_LONG_TOKENS), ""
        while len(self._tokenizer.encode(text).ids) < wanted:
            text += self._dice.choice(self._prose) + "\n"
        return text.strip()

    def _piece_of_prose(self) -> Row:
        ids = list(self._dice.choice(self._prose_ids))
        start = self._dice.randrange(max(1, len(ids) - _PROSE_TOKENS))
        ids = ids[start : start + _PROSE_TOKENS]
        return Row(ids, list(range(len(ids) - 1)), _PROSE_WEIGHT)

    def _conversation(self, tasks: Sequence[Task], system: str = "") -> Row:
        if not all(map(must_be_trained, tasks)):
            raise ValueError(f"a held-out task among {[task.key for task in tasks]!r}")
        turns: list[Turn] = [{"role": "system", "content": system}] if system else []
        tools = tasks[0].tools
        for task in tasks:
            if task.tools != tools or (task.turns[0]["role"] == "system" and turns):
                break
            turns += [*task.turns, {"role": "assistant", "content": task.answer}]
        return self.row(render(turns, tools))

    def row(self, text: str) -> Row:
        """Return a rendered conversation as a row in which the assistant's turns are learnt."""
        ids = self._tokenizer.encode(text).ids
        places: list[int] = []
        answering = False
        for place, token in enumerate(ids[:-1]):
            if token == self._assistant:
                answering = True
            elif token == self._end:
                answering = False
            if answering:
                places.append(place)
        return Row(ids, places)

    def batches(self, tokens: int) -> Iterator[Batch]:
        """Yield batches of about ``tokens`` token places, without end. Rows of a batch have similar lengths."""
        while True:
            pool = sorted((self.draw() for _ in range(_POOL)), key=lambda row: len(row.ids))
            packed: list[list[Row]] = [[]]
            for row in pool:
                if packed[-1] and len(row.ids) * (len(packed[-1]) + 1) > tokens:
                    packed.append([])
                packed[-1].append(row)
            self._dice.shuffle(packed)
            yield from map(_batch, packed)


def _batch(rows: Sequence[Row]) -> Batch:
    length = -(-max(len(row.ids) for row in rows) // _ROUND) * _ROUND
    tokens = np.zeros((len(rows), length), dtype=np.int32)
    places: list[int] = []
    following: list[int] = []
    weights: list[float] = []
    for number, row in enumerate(rows):
        tokens[number, : len(row.ids)] = row.ids
        places += [number * length + place for place in row.learnt]
        following += [row.ids[place + 1] for place in row.learnt]
        weights += [row.weight] * len(row.learnt)
    return Batch(
        tokens,
        np.array(places, dtype=np.int32),
        np.array(following, dtype=np.int32),
        np.array(weights, dtype=np.float32),
    )
