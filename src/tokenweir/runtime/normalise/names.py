"""Options by any of their names: every spelling of one finds it, and an unknown one finds its nearest neighbour.

A name may be written in snake_case or in camelCase. Two spellings of one option must agree.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Final, Literal, NamedTuple, TypeAlias

from tokenweir.core.errors import ParameterError
from tokenweir.core.requests import Json, Kind

_HUMP: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_CAMEL: Final = re.compile(r"[a-z][a-zA-Z0-9]*")

Form: TypeAlias = Kind | Literal["load", "unload", "tokenize", "detokenize"]
"""What a body is: one of the kinds of request, or what another route takes."""


class Option(NamedTuple):
    """An option that is understood: the forms of body it belongs to and its other names, in snake_case."""

    forms: frozenset[Form]
    others: tuple[str, ...] = ()


class Foreign(NamedTuple):
    """An option of other servers: ``neutral`` values change nothing and pass, any other is refused with the mend.

    A harmless one without neutral values passes whatever it is.
    """

    neutral: tuple[Json, ...] = ()
    mend: str = "leave it out"


class Given(NamedTuple):
    """A value as the client gave it: ``spelling`` is the name it used, so that errors speak of that one."""

    spelling: str
    value: Json


class Vocabulary:
    """The names that bodies of some forms may hold, by their canonical ones."""

    def __init__(
        self,
        options: Mapping[str, Option],
        *,
        harmless: Mapping[str, Foreign],
        foreign: Mapping[str, Foreign],
    ) -> None:
        self.options = options
        self.harmless = harmless
        self.foreign = foreign
        self._by_name = {name: name for name in (*options, *harmless, *foreign)} | {
            other: name for name, option in options.items() for other in option.others
        }

    def spellings(self, name: str) -> tuple[str, ...]:
        """Return every name that an option goes by, the canonical one first."""
        snakes = (name, *self.options[name].others) if name in self.options else (name,)
        return tuple(dict.fromkeys(each for one in snakes for each in (one, camel(one))))

    def known(self, form: Form) -> tuple[str, ...]:
        """Return the canonical names of the options of one form of body."""
        return tuple(name for name, option in self.options.items() if form in option.forms)

    def sort_out(self, form: Form, body: Mapping[str, Json]) -> dict[str, Given]:
        """Return what a body says of each option it names, by canonical name; ``null`` says nothing.

        Raises:
            ParameterError: a name is unknown, not of this form of body or not supported here, or two spellings
                of one option differ.
        """
        found: dict[str, Given] = {}
        for spelling, value in body.items():
            name = self._by_name.get(spelling) or self._by_name.get(snake(spelling))
            if name is None:
                raise self._unknown(form, spelling)
            if value is None:
                continue
            if name in self.options:
                self._claim(found, name, Given(spelling, value), form)
            else:
                self._pass(name, Given(spelling, value))
        return found

    def _claim(self, found: dict[str, Given], name: str, given: Given, form: Form) -> None:
        if form not in self.options[name].forms:
            raise ParameterError(
                f"{given.spelling!r} does not belong to a request of kind {form!r}",
                param=given.spelling,
                reason="unsupported_parameter",
                mend=f"it takes {', '.join(self.known(form))}",
            )
        before = found.setdefault(name, given)
        if before.value != given.value:
            raise ParameterError(
                f"{before.spelling!r} is {short(before.value)} and {given.spelling!r} is {short(given.value)}, "
                "and both name one option",
                param=given.spelling,
                reason="contradictory_parameters",
                mend="send one of them",
            )

    def _pass(self, name: str, given: Given) -> None:
        """Let a foreign option go by when it changes nothing. ``False`` and 0 are told apart by their types."""
        value = given.value
        foreign = self.harmless.get(name) or self.foreign[name]
        if name in self.harmless and not foreign.neutral:
            return
        if any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in foreign.neutral):
            return
        raise ParameterError(
            f"{given.spelling!r} ({short(value)}) is not supported",
            param=given.spelling,
            reason="unsupported_parameter",
            mend=foreign.mend,
        )

    def _unknown(self, form: Form, spelling: str) -> ParameterError:
        names = [each for name in (*self.known(form), *self.harmless) for each in self.spellings(name)]
        near = difflib.get_close_matches(spelling, names, n=1, cutoff=0.6)
        mend = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(self.known(form))}"
        return ParameterError(
            f"unknown parameter {short(spelling)}", param=spelling, reason="unknown_parameter", mend=mend
        )


def snake(name: str) -> str:
    """Return a camelCase name in snake_case; any other name as it is."""
    return _HUMP.sub("_", name).lower() if _CAMEL.fullmatch(name) else name


def camel(name: str) -> str:
    """Return a snake_case name in camelCase."""
    head, *rest = name.split("_")
    return head + "".join(part.capitalize() for part in rest)


def short(value: Json) -> str:
    """Return a value as a message shows it: on one line, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 60 else text[:59] + "…"  # noqa: PLR2004 - a message stays one line
