"""Beginnings that make every prompt unique, so that a server's prefix cache cannot answer for its engine."""

from __future__ import annotations

import hashlib
import re
from typing import Final

from tokenweir.bench.corpora.shipped import shipped_prose
from tokenweir.bench.tokenizers import count_tokens
from tokenweir.ports.tokenizer import Tokenizer

_WORD: Final = re.compile(r"[a-z]{2,12}")
_WORDS: Final = 16
_BITS: Final = 4
_LENGTH: Final = 8


class Tagger:
    """Makes tags of one length in tokens: 8 words of one token each, or where there are none 8 digits."""

    def __init__(self, tokenizer: Tokenizer, *, seed: int) -> None:
        self._seed = seed
        self._words = _one_token_words(tokenizer) if tokenizer.exact else ()

    def tag(self, load: int, sample: int, repeat: int) -> str:
        """Return the tag of one request, with the white space that parts it from the prompt."""
        digest = hashlib.blake2b(f"{self._seed}/{load}/{sample}/{repeat}".encode(), digest_size=4).digest()
        number = int.from_bytes(digest, "big")
        if not self._words:
            return f"{number:08x} "
        picks = ((number >> (_BITS * place)) % _WORDS for place in range(_LENGTH))
        return " ".join(self._words[pick] for pick in picks) + ". "


def _one_token_words(tokenizer: Tokenizer) -> tuple[str, ...]:
    """Return 16 words of one token each, first or after a space; none where there are fewer."""
    words = sorted(set(_WORD.findall(shipped_prose())))
    alone = count_tokens(tokenizer, words)
    # A pair is two tokens only when both words stay whole beside each other.
    paired = count_tokens(tokenizer, [f"{word} {word}" for word in words])
    found = [
        word
        for word, one, two in zip(words, alone.tolist(), paired.tolist(), strict=True)
        if (one, two) == (1, 2)
    ]
    return tuple(found[:_WORDS]) if len(found) >= _WORDS else ()
