"""Models: which there are, loading one, unloading one."""

from __future__ import annotations

import ipaddress
from typing import Final

from tokenweir.asgi.call import Call
from tokenweir.core.errors import ForbiddenError, ModelNotLoadedError
from tokenweir.core.requests import Json
from tokenweir.runtime.health import ModelStatus
from tokenweir.runtime.http.door import Door
from tokenweir.runtime.normalise.loading import loading
from tokenweir.runtime.normalise.values import Values
from tokenweir.runtime.normalise.vocabulary import UNLOADING

_HERE: Final = frozenset({"localhost", "127.0.0.1", "[::1]"})
_MEND: Final = "set runtime.api_key to allow it with a key"


async def listing(door: Door, call: Call) -> None:
    """Answer ``GET /v1/models``."""
    entries: list[Json] = [_entry(door, status) for status in door.serving.models()]
    await call.answer_json({"object": "list", "data": entries})


async def one(door: Door, call: Call) -> None:
    """Answer ``GET /v1/models/{id}``; an id may hold slashes."""
    name = call.path.removeprefix("/v1/models/")
    found = next((status for status in door.serving.models() if status.card.name == name), None)
    if found is None:
        names = ", ".join(repr(status.card.name) for status in door.serving.models()) or "none"
        raise ModelNotLoadedError(f"there is no model {name!r}", mend=f"the models: {names}")
    await call.answer_json(_entry(door, found))


async def load(door: Door, call: Call) -> None:
    """Answer ``POST /v1/models/load``."""
    _check_local(door, call)
    ask = loading(await door.json(call))
    card = await door.serving.load(
        ask.path,
        name=ask.name,
        weight_bits=ask.weight_bits,
        context_tokens=ask.context_tokens,
        draft=ask.draft,
    )
    found = next((status for status in door.serving.models() if status.card.name == card.name), None)
    await call.answer_json(_entry(door, found or ModelStatus(card=card, state="loaded")))


async def unload(door: Door, call: Call) -> None:
    """Answer ``POST /v1/models/unload``."""
    _check_local(door, call)
    values = Values(UNLOADING.sort_out("unload", await door.json(call)))
    name = door.card(values.text("model") or "").name
    await door.serving.unload(name)
    await call.answer_json({"object": "model", "id": name, "state": "unloaded"})


def _entry(door: Door, status: ModelStatus) -> dict[str, Json]:
    """Return OpenAI's fields, vLLM's ``root`` and ``max_model_len``, and what the files tell."""
    card = status.card
    return {
        "id": card.name,
        "object": "model",
        "created": door.started_s,
        "owned_by": "tokenweir",
        "root": card.path,
        "max_model_len": card.context_tokens,
        "revision": card.revision,
        "system_fingerprint": door.fingerprint(card),
        "architecture": card.architecture,
        "vocabulary": card.vocabulary,
        "weights_bytes": card.weights_bytes,
        "kv_bytes_per_token": card.kv_bytes_per_token,
        "weight_bits": card.weight_bits,
        "draft": card.draft,
        "capabilities": list(card.capabilities),
        "state": status.state,
    }


def _check_local(door: Door, call: Call) -> None:
    """Let only this machine change what is loaded, unless a key says who asks.

    A page in a browser on this machine is not this machine's user: it sends an Origin, and a name that was made
    to point here shows in Host.
    """
    if door.key is not None:
        return
    host = (call.header(b"host") or b"").decode("latin-1").lower()
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
    try:
        local = not call.client or ipaddress.ip_address(call.client).is_loopback
    except ValueError:
        local = False
    if not local:
        raise ForbiddenError("only this machine may load and unload models", mend=_MEND)
    if call.header(b"origin") is not None or name not in _HERE:
        raise ForbiddenError("a page of another origin may not load or unload models", mend=_MEND)
