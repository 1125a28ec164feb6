"""Whether a small model can draft for a larger one: a drafted token must mean the same to both."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tokenweir.core.errors import InputError
from tokenweir.runtime.models.tokenizers import read_vocabulary, special_tokens

_MEND: Final = "take a draft model of the same family, with the same tokenizer"
_SPECIAL: Final = ("bos_token", "eos_token")


def check_draft(target: Path, draft: Path) -> None:
    """Check that the models in two directories number the same tokens alike and begin and end alike.

    Raises:
        InputError: they do not; the message names the first difference.
    """
    if target == draft:
        raise InputError(f"the model {target} cannot draft for itself", mend="take a smaller one")
    mine, theirs = read_vocabulary(target), read_vocabulary(draft)
    if mine.tokens != theirs.tokens:
        raise InputError(
            f"the draft model {draft} has another vocabulary than {target}: "
            f"{_difference(mine.tokens, theirs.tokens)}",
            mend=_MEND,
        )
    if mine.special != theirs.special:
        odd = min(mine.special ^ theirs.special)
        raise InputError(
            f"the token {odd!r} is special in only one of {target} and its draft model {draft}", mend=_MEND
        )
    own, other = special_tokens(target), special_tokens(draft)
    for name in _SPECIAL:
        if own[name] != other[name]:
            raise InputError(
                f"{name} of the draft model {draft} is {other[name]!r}, and {own[name]!r} of {target}",
                mend=_MEND,
            )


def _difference(mine: dict[str, int], theirs: dict[str, int]) -> str:
    if len(mine) != len(theirs):
        return f"{len(theirs)} tokens instead of {len(mine)}"
    text = next(text for text, number in mine.items() if theirs.get(text) != number)
    return f"{text!r} is {theirs.get(text, 'no token')} instead of {mine[text]}"
