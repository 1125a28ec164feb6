"""API keys: how they are made, read and recognised. Only a digest is ever kept."""

from __future__ import annotations

import hashlib
import re
import secrets
from typing import Final, NamedTuple

from tokenweir.core.errors import InputError, UnauthorizedError
from tokenweir.core.ids import new_id, parse_id

PREFIX: Final = "weir_"
_ID_LETTERS: Final = 26
_SECRET_BYTES: Final = 20
_SECRET: Final = re.compile(r"[0-9A-Za-z_-]{27}")


class NewKey(NamedTuple):
    """A key that was just made: its id (16 bytes), the text shown once, and the digest to keep."""

    id: bytes
    text: str
    digest: bytes


def make_key() -> NewKey:
    """Return a fresh key: ``weir_``, its id in 26 letters, and 160 random bits."""
    key_id = new_id("key")
    text = f"{PREFIX}{key_id.removeprefix('key_')}{secrets.token_urlsafe(_SECRET_BYTES)}"
    return NewKey(parse_id(key_id).uuid.to_bytes(16, "big"), text, digest_of(text))


def digest_of(text: str) -> bytes:
    """Return what is kept of a key: its SHA-256."""
    return hashlib.sha256(text.encode()).digest()


def id_of(text: str) -> bytes:
    """Return the id within a key's text. Raises UnauthorizedError for what has not the form of a key."""
    letters, secret = text[len(PREFIX) :][:_ID_LETTERS], text[len(PREFIX) + _ID_LETTERS :]
    # The message never repeats what was shown: it may be a real key with a slip in it.
    error = UnauthorizedError(
        "what was sent is no API key of this gateway",
        mend=f"send the whole key, {PREFIX} and 53 letters, as 'authorization: Bearer KEY'",
    )
    if not text.startswith(PREFIX) or _SECRET.fullmatch(secret) is None:
        raise error
    try:
        return parse_id(f"key_{letters}", prefix="key").uuid.to_bytes(16, "big")
    except InputError:
        raise error from None


def recognised(text: str, digest: bytes) -> bool:
    """Whether a key is the one that was kept, in constant time."""
    return secrets.compare_digest(digest_of(text), digest)
