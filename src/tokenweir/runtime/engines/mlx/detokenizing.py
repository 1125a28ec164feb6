"""Text from tokens, as they come: exact for byte-level vocabularies and for SentencePiece's with byte fallback.

Both kinds of vocabulary write a token as bytes, so an answer is a stream of bytes that is decoded as UTF-8: a
character whose bytes are spread over tokens appears with its last one. Other vocabularies (WordPiece) are decoded by
the tokenizer itself, over a window of the last tokens.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Literal

import msgspec
from tokenizers import Tokenizer

from tokenweir.core.requests import Json
from tokenweir.ports.inference import Detokenizer

_BYTE: Final = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE: Final = "▁"
_REPLACEMENT: Final = "�"
_WINDOW: Final = 16
"""Tokens that a window keeps before it starts anew."""


class ByteTable(msgspec.Struct, frozen=True):
    """The bytes of every token, and whether a space at the very beginning of a text is not part of it."""

    pieces: tuple[bytes, ...]
    strip_space: bool = False


class BytesDetokenizer:
    """Decodes the bytes of tokens as UTF-8."""

    __slots__ = ("_decoder", "_first", "_pieces")

    def __init__(self, table: ByteTable) -> None:
        self._pieces = table.pieces
        self._first = table.strip_space
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token: int) -> str:
        """Return the text that ``token`` completes."""
        # A model's output layer may be wider than its vocabulary; what lies beyond has no text.
        piece = self._pieces[token] if 0 <= token < len(self._pieces) else b""
        if self._first and piece:
            self._first = False
            piece = piece.removeprefix(b" ")
        return self._decoder.decode(piece)

    def finish(self) -> str:
        """Return what is left; pieces of a character become U+FFFD."""
        return self._decoder.decode(b"", final=True)


class WindowDetokenizer:
    """Decodes a window of the last tokens again with each token, and returns what is new."""

    __slots__ = ("_decode", "_said", "_window")

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._window: list[int] = []
        self._said = ""

    def add(self, token: int) -> str:
        """Return the text that ``token`` completes."""
        self._window.append(token)
        text = self._decode(self._window)
        if text.endswith(_REPLACEMENT):
            return ""
        new = text[len(self._said) :]
        self._said = text
        if len(self._window) > _WINDOW:
            # The last token stays, so that the next one is joined to it as it would be in the whole text.
            self._window = self._window[-1:]
            self._said = self._decode(self._window)
        return new

    def finish(self) -> str:
        """Return what is left."""
        return self._decode(self._window)[len(self._said) :] if self._window else ""


def detokenizers(
    tokenizer: Tokenizer, layout: Mapping[str, Json], shown: frozenset[str]
) -> Callable[[], Detokenizer]:
    """Return what makes fresh detokenizers for ``tokenizer``, whose JSON is ``layout``.

    Special tokens have no text, except those in ``shown``.
    """
    table = byte_table(tokenizer, layout, shown)
    if table is not None:
        return lambda: BytesDetokenizer(table)
    hidden = _hidden(tokenizer, shown)

    def decode(tokens: Sequence[int]) -> str:
        return tokenizer.decode([token for token in tokens if token not in hidden], skip_special_tokens=False)

    return lambda: WindowDetokenizer(decode)


def byte_table(tokenizer: Tokenizer, layout: Mapping[str, Json], shown: frozenset[str]) -> ByteTable | None:
    """Return the bytes of every token, or ``None`` where tokens do not stand for bytes of their own."""
    decoder = layout.get("decoder")
    kind, strip = _kind(decoder if isinstance(decoder, dict) else {})
    if kind is None:
        return None
    added = {token: str(content) for token, content in tokenizer.get_added_tokens_decoder().items()}
    special = _hidden(tokenizer, shown)
    to_bytes = _from_byte_level if kind == "byte_level" else _from_sentence_piece
    size = max(tokenizer.get_vocab().values(), default=-1) + 1
    pieces: list[bytes] = []
    for token in range(size):
        text = tokenizer.id_to_token(token)
        if text is None or token in special:
            pieces.append(b"")
        elif token in added:
            pieces.append(text.encode())
        else:
            pieces.append(to_bytes(text))
    return ByteTable(tuple(pieces), strip)


def _hidden(tokenizer: Tokenizer, shown: frozenset[str]) -> frozenset[int]:
    return frozenset(
        token
        for token, added in tokenizer.get_added_tokens_decoder().items()
        if added.special and str(added.content) not in shown
    )


def _kind(decoder: Mapping[str, Json]) -> tuple[Literal["byte_level", "sentence_piece"] | None, bool]:
    """Return how a decoder's tokens stand for bytes, and whether it drops a space at the beginning."""
    parts = decoder.get("decoders") if decoder.get("type") == "Sequence" else [dict(decoder)]
    known = [part for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []
    kinds = {str(part.get("type")) for part in known}
    if "ByteLevel" in kinds:
        return "byte_level", False
    metaspace = next((part for part in known if part.get("type") == "Metaspace"), None)
    if metaspace is not None and kinds <= {"Metaspace", "ByteFallback", "Fuse", "Strip"}:
        return "sentence_piece", metaspace.get("prepend_scheme", "always") != "never"
    spaced = any(
        part.get("type") == "Replace"
        and part.get("pattern") == {"String": _SPACE}
        and part.get("content") == " "
        for part in known
    )
    if spaced and kinds <= {"Replace", "ByteFallback", "Fuse", "Strip"}:
        strips = any(part.get("type") == "Strip" and part.get("start") == 1 for part in known)
        return "sentence_piece", strips
    return None, False


def _from_sentence_piece(text: str) -> bytes:
    byte = _BYTE.fullmatch(text)
    return bytes([int(byte[1], 16)]) if byte else text.replace(_SPACE, " ").encode()


def _from_byte_level(text: str) -> bytes:
    try:
        return bytes(_BYTE_OF[character] for character in text)
    except KeyError:
        return text.encode()


def _byte_alphabet() -> dict[str, int]:
    """Return the byte that each character of a byte-level vocabulary stands for.

    Printable Latin-1 characters stand for themselves, the other 68 bytes, in order, for U+0100 onwards.
    Source: GPT-2's tokenizer.
    """
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(plain)]
    return {chr(byte): byte for byte in plain} | {chr(256 + at): byte for at, byte in enumerate(others)}


_BYTE_OF: Final = _byte_alphabet()
