"""The words that generated tasks are made of. All of them are made up or everyday words."""

# ruff: noqa: SIM905 - lists of words are easier to read without quotes

from __future__ import annotations

from typing import Final

NAMES: Final = tuple(
    "Anna Ben Cara Dan Ella Finn Greta Hugo Ilse Jan Kira Leo Mara Nils Olga Paul Rosa Sven Tara Viktor".split()
)
CITIES: Final = tuple(
    "Bern Cairo Delhi Dublin Lima Lisbon London Madrid Oslo Paris Prague Quito Riga Rome Sofia Tokyo".split()
)
PLACES: Final = tuple(
    "Alder Brook Crest Dale Fenn Glen Hollin Kelt Lock Marsh Orrin Pell Rook Stone Tarn Vale".split()
)
COLOURS: Final = tuple("black blue brown gold green grey pink purple red silver white yellow".split())
THINGS: Final = tuple(
    "apple boat book bread bridge clock cup door egg fish gate key lamp leaf map mill rope salt shoe tree".split()
)
FIELDS: Final = tuple("age city colour count depth item level name price size station weight".split())
"""Keys of JSON objects; those of :data:`NUMBER_FIELDS` have numbers for values."""
NUMBER_FIELDS: Final = frozenset("age count depth level price size weight".split())
ORDINALS: Final = ("first", "second", "third", "last")
