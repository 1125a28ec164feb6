"""Vectors and tokens: embeddings, tokenising, and the way back."""

from __future__ import annotations

import base64
import struct
from typing import Final

from tokenweir.asgi.call import Call
from tokenweir.core.errors import ParameterError
from tokenweir.core.events import Usage
from tokenweir.core.requests import Json
from tokenweir.runtime.http.door import Door
from tokenweir.runtime.normalise.messages import messages
from tokenweir.runtime.normalise.requests import normalise
from tokenweir.runtime.normalise.values import Values
from tokenweir.runtime.normalise.vocabulary import DETOKENIZING, TOKENIZING

_MOST_TOKENS: Final = 1 << 20


async def embedding(door: Door, call: Call) -> None:
    """Answer ``POST /v1/embeddings``."""
    ask = normalise("embedding", await door.json(call))
    card = door.card(ask.model)
    with door.metered(call, card.name) as meter:
        found = await door.serving.embed(card.name, ask.requests[0].inputs)
        packed = ask.encoding == "base64"
        data: list[Json] = [
            {"object": "embedding", "index": index, "embedding": _packed(vector) if packed else list(vector)}
            for index, vector in enumerate(found.vectors)
        ]
        used = found.input_tokens
        meter.done(Usage(seq=0, input_tokens=used))
    await call.answer_json(
        {
            "object": "list",
            "data": data,
            "model": card.name,
            "usage": {"prompt_tokens": used, "total_tokens": used},
        }
    )


async def tokenize(door: Door, call: Call) -> None:
    """Answer ``POST /tokenize``: a prompt, or messages in the model's chat template."""
    values = Values(TOKENIZING.sort_out("tokenize", await door.json(call)))
    card = door.card(values.text("model") or "")
    prompt = values.text("prompt")
    if (prompt is None) == ("messages" not in values):
        raise ParameterError(
            "give either a prompt or messages",
            param="prompt",
            reason="missing_required_parameter",
            mend="send a text as prompt, or turns as messages",
        )
    asked = messages(values, door.image_limits) if prompt is None else prompt
    found = await door.serving.tokenize(card.name, asked)
    await call.answer_json({"count": len(found), "max_model_len": card.context_tokens, "tokens": list(found)})


async def detokenize(door: Door, call: Call) -> None:
    """Answer ``POST /detokenize``."""
    values = Values(DETOKENIZING.sort_out("detokenize", await door.json(call)))
    card = door.card(values.text("model") or "")
    given = values.raw("tokens")
    if not isinstance(given, list) or len(given) > _MOST_TOKENS:
        raise values.wrong("tokens", "a list of token ids")
    tokens = [one for one in given if type(one) is int and 0 <= one < card.vocabulary]
    if len(tokens) != len(given):
        raise values.wrong("tokens", f"made of token ids below {card.vocabulary}")
    await call.answer_json({"prompt": await door.serving.detokenize(card.name, tokens)})


def _packed(vector: tuple[float, ...]) -> str:
    """Return little-endian float32 in base64, as OpenAI's clients ask for it."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
