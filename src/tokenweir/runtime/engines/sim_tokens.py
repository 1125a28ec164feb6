"""The simulated model's tokenizer and chat format: words and bytes, so that every text comes back as it was."""

from __future__ import annotations

import codecs
import re
from collections.abc import Mapping, Sequence
from typing import Final, cast

import msgspec

from tokenweir.core.errors import ParameterError, ProtocolError
from tokenweir.core.requests import Json, Message, Tool
from tokenweir.ports.inference import Markers
from tokenweir.runtime.engines.sim_config import MIN_VOCABULARY

BOS: Final = 0
EOS: Final = 1
_MARKERS: Final = (
    "<|begin|>",
    "<|end|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|tool|>",
    "<|tools|>",
    "<|image|>",
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
)
TOOLS: Final = _MARKERS.index("<|tools|>")
THINK_CLOSE: Final = _MARKERS.index("</think>")
THINK_OPEN: Final = _MARKERS.index("<think>")
IMAGE: Final = _MARKERS.index("<|image|>")
MARKS: Final = range(len(_MARKERS))
"""The tokens that are no text: they write nothing in a guided answer."""
_FIRST_BYTE: Final = len(_MARKERS)
_FIRST_WORD: Final = _FIRST_BYTE + 256
_WORDS: Final = (
    "lake rain moss fern reed sand silt clay rock flow weir pool ford dale glen peat mist dawn dusk wind leaf root "
    "bark seed corn barn mill gate lock quay boat sail mast rope knot tide wave foam gull coot newt toad frog hare "
    "deer lynx wolf bear crow wren lark swan duck hawk moth bees ants hive nest path bridge river stream water stone "
    "meadow forest valley harbour island winter summer autumn spring morning evening night silver copper iron wooden "
    "quiet gentle narrow shallow deep cold warm bright dark early late slow swift small large old new long short "
    "the of and to in is it that for on with as was at by be this have from or one had not but what all were when we "
    "there can an your which their said if do will each about how up out them then she many some so these would other "
    "into has more her two like him see time could no make than first been its who now people my made over did down "
    "only way find use may water after words called just where most know get through back much before go good write "
    "our me man too any day same right look think also around another came come work three word must because does "
    "part even place well such here take why help put different away again off went old number great tell men say "
    "every found still between name should home big give air line set own under read last never us left end along "
    "while might next sound below saw something thought both few those always show often together asked house"
)


def _pieces() -> tuple[bytes, ...]:
    words = list(dict.fromkeys(b" " + one.encode() for one in _WORDS.split()))
    pieces = [one.encode() for one in _MARKERS] + [bytes([one]) for one in range(256)]
    pieces += words[: MIN_VOCABULARY - len(pieces)]
    return tuple(pieces)


PIECES: Final = _pieces()
"""The bytes of each token."""
_IDS: Final = {piece: number for number, piece in enumerate(PIECES)}

WORD_TOKENS: Final = tuple(range(_FIRST_WORD, len(PIECES)))
"""The tokens that answers are made of: a space and a word each."""

_long_first: Final = sorted((*PIECES[:_FIRST_BYTE], *PIECES[_FIRST_WORD:]), key=len, reverse=True)
_PIECE: Final = re.compile(b"|".join(map(re.escape, _long_first)) + b"|.", re.DOTALL)
_PLAIN: Final = tuple(
    "" if number in (BOS, EOS) else (piece.decode("ascii") if max(piece) < 0x80 else None)  # noqa: PLR2004
    for number, piece in enumerate(PIECES)
)
"""The text of a token that needs no other token to be text."""


def encode(text: str, *, special: bool = False) -> list[int]:
    """Return the tokens of ``text``; ``special`` puts the beginning's mark before them."""
    ids = _IDS
    found = [ids[piece] for piece in _PIECE.findall(text.encode("utf-8", "replace"))]
    return [BOS, *found] if special else found


def decode(tokens: Sequence[int]) -> str:
    """Return the text of ``tokens``, marks of beginning and end left out."""
    detokenizer = SimDetokenizer()
    return "".join(map(detokenizer.add, tokens)) + detokenizer.finish()


def spell(tokens: Sequence[int]) -> str:
    """Return ``tokens`` as text with every mark spelt out, as in a rendered prompt."""
    known = len(PIECES)
    return b"".join(PIECES[token] for token in tokens if token < known).decode("utf-8", "replace")


class SimDetokenizer:
    """Joins bytes into characters."""

    __slots__ = ("_open", "_utf8")

    def __init__(self) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._open = False

    def add(self, token: int) -> str:
        """Return the text that ``token`` completes."""
        plain = _PLAIN[token] if 0 <= token < len(_PLAIN) else ""
        if plain is not None and not self._open:
            return plain
        if plain == "":
            return ""
        text = self._utf8.decode(PIECES[token])
        self._open = bool(self._utf8.getstate()[0])
        return text

    def finish(self) -> str:
        """Return what is left."""
        self._open = False
        return self._utf8.decode(b"", final=True)


class SimFormat:
    """A chat format of marks: ``<|user|>``, the text, ``<|end|>``."""

    __slots__ = ("_vocabulary",)

    def __init__(self, vocabulary: int = MIN_VOCABULARY) -> None:
        self._vocabulary = vocabulary

    def encode(self, text: str, *, special: bool = True) -> Sequence[int]:
        """Return the token ids of ``text``."""
        return encode(text, special=special)

    def render(self, messages: Sequence[Message], tools: Sequence[Tool], options: Mapping[str, Json]) -> str:
        """Return the prompt. ``enable_thinking`` true opens the reasoning. Raises ParameterError for other options."""
        unknown = [name for name in options if name != "enable_thinking"]
        if unknown:
            raise ParameterError(
                f"the chat template takes no {unknown[0]!r}",
                param="chat_template_kwargs",
                mend="it takes 'enable_thinking': true or false",
            )
        parts = ["<|begin|>"]
        if tools:
            listed = [{"name": tool.name, "parameters": tool.parameters} for tool in tools]
            parts.append(f"<|tools|>{_json(listed)}<|end|>")
        for message in messages:
            parts.append(f"<|{_role(message)}|>{_content(message)}")
            parts += [
                f'<tool_call>{{"name": {_json(call.name)}, "arguments": {call.arguments}}}</tool_call>'
                for call in message.tool_calls
            ]
            parts.append("<|end|>")
        parts.append("<|assistant|>")
        if options.get("enable_thinking") is True:
            parts.append("<think>")
        return "".join(parts)

    def detokenizer(self) -> SimDetokenizer:
        """Return a fresh detokenizer."""
        return SimDetokenizer()

    def markers(self) -> Markers:
        """Return the fences."""
        return Markers(think=("<think>", "</think>"), tool=("<tool_call>", "</tool_call>"))


class SimToolCalls:
    """A tool call is a JSON object with ``name`` and ``arguments``."""

    __slots__ = ()

    def parse(self, text: str, tools: Sequence[Tool]) -> Sequence[tuple[str, str]]:
        """Return (name, JSON arguments) for each call. Raises ProtocolError for what is none, or of no given tool."""
        try:
            told = cast("Json", msgspec.json.decode(text.strip()))
        except msgspec.DecodeError as error:
            raise ProtocolError(f"a tool call is no JSON: {error}") from None
        calls: list[tuple[str, str]] = []
        for one in told if isinstance(told, list) else [told]:
            name = one.get("name") if isinstance(one, dict) else None
            if not isinstance(one, dict) or name not in {tool.name for tool in tools}:
                raise ProtocolError(f"a tool call names {name!r}, which is no tool of this request")
            arguments = one.get("arguments", {})
            calls.append((str(name), arguments if isinstance(arguments, str) else _json(arguments)))
        return calls


def _role(message: Message) -> str:
    if message.role not in ("system", "developer", "user", "assistant", "tool"):
        raise ParameterError(
            f"the chat template knows no role {message.role!r}",
            param="messages",
            mend="use system, user, assistant or tool",
        )
    return "system" if message.role == "developer" else message.role


def _content(message: Message) -> str:
    if not isinstance(message.content, tuple):
        return message.content or ""
    return "".join(
        "<|image|>" if part.get("type") == "image" else str(part.get("text", "")) for part in message.content
    )


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()
