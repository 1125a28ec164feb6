"""Encryption at rest: bodies, logs and events are sealed where they enter a store, and opened where they leave it.

AES-256-GCM under a key of its own for each request, derived from the configured key with HKDF, so that no nonce can
come twice under one key however many tokens flow. What is sealed names its key, and is bound to its request.
Source: NIST SP 800-38D (limits of random nonces); RFC 5869 (HKDF).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import secrets
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import Final, cast

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from tokenweir.core.errors import ConfigError, WeirError
from tokenweir.core.events import Completed, Event, Failed, Token
from tokenweir.ports.eventlog import Append, BoundedLog, EventLog

_PLAIN: Final = b"\x00"
_SEALED: Final = b"\x01"
_KEY_BYTES: Final = 32
_ID_BYTES: Final = 4
_NONCE_BYTES: Final = 12
_HEAD: Final = 1 + _ID_BYTES
_ANY: Final = 2**62
_SEALED_BYTES: Final = 65_536
"""What sealing may add to an answer's events beside base64's third."""
_HELD: Final = 4096
"""Derived keys kept at hand."""
_EVENT: Final = "\x01sealed:"
"""How the text of a sealed event begins."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Event).decode


class SealError(WeirError):
    """What is stored cannot be opened: its key is not configured, or it was changed."""

    code = "sealed"


class SealingKey(msgspec.Struct, frozen=True):
    """A key of 32 bytes and its id: the first four of its digest."""

    secret: bytes
    id: bytes

    @classmethod
    def read(cls, text: str) -> SealingKey:
        """Read base64 or hexadecimal digits. Raises ConfigError for anything but 32 bytes."""
        for decode in (binascii.unhexlify, base64.b64decode):
            try:
                secret = decode(text)
            except (binascii.Error, ValueError):
                continue
            if len(secret) == _KEY_BYTES:
                return cls(secret, hashlib.sha256(b"tokenweir seal" + secret).digest()[:_ID_BYTES])
        raise ConfigError("a sealing key is not 32 bytes", mend="make one with: openssl rand -base64 32")

    def __repr__(self) -> str:
        return f"SealingKey({self.id.hex()})"


class Sealer:
    """Seals with the first key, opens with any. Without keys, bytes stay as they are."""

    def __init__(self, keys: Sequence[SealingKey] = ()) -> None:
        self._keys = {key.id: key for key in keys}
        self._current = keys[0] if keys else None
        self._derived: OrderedDict[bytes, AESGCM] = OrderedDict()

    @property
    def seals(self) -> bool:
        """Whether there is a key."""
        return self._current is not None

    @property
    def prefix(self) -> bytes:
        """How everything begins that is as this would write it now."""
        return _PLAIN if self._current is None else _SEALED + self._current.id

    def seal(self, request: bytes, data: bytes) -> bytes:
        """Return ``data`` as it is to be stored with a request (16 bytes)."""
        key = self._current
        if key is None:
            return _PLAIN + data
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return _SEALED + key.id + nonce + self._cipher(key, request).encrypt(nonce, data, request)

    def open(self, request: bytes, stored: bytes) -> bytes:
        """Return what was stored with a request. Raises SealError."""
        if not stored.startswith(_SEALED):
            return stored[1:]
        head = _HEAD + _NONCE_BYTES
        key = self._key(stored[1:_HEAD])
        try:
            return self._cipher(key, request).decrypt(stored[_HEAD:head], stored[head:], request)
        except InvalidTag:
            raise SealError(
                "what was stored was changed, or belongs to another request", mend="restore it from a backup"
            ) from None

    def _key(self, key_id: bytes) -> SealingKey:
        key = self._keys.get(key_id)
        if key is None:
            raise SealError(
                f"the sealing key {key_id.hex()} is not configured", mend="add it to gateway.seal_keys"
            )
        return key

    def _cipher(self, key: SealingKey, request: bytes) -> AESGCM:
        name = key.id + request
        cipher = self._derived.get(name)
        if cipher is None:
            derived = HKDF(algorithm=SHA256(), length=_KEY_BYTES, salt=request, info=b"tokenweir request")
            cipher = self._derived[name] = AESGCM(derived.derive(key.secret))
            if len(self._derived) > _HELD:
                self._derived.popitem(last=False)
        return cipher


class SealedEventLog:
    """An event log whose events' contents are sealed; their kind, seq and number stay in the clear."""

    def __init__(self, log: EventLog, sealer: Sealer) -> None:
        self._log = log
        self._sealer = sealer

    @property
    def most_bytes(self) -> int:
        """The most bytes that the events of one append may have as MessagePack, before they are sealed."""
        if not isinstance(self._log, BoundedLog):
            return _ANY
        return (self._log.most_bytes - _SEALED_BYTES) * 3 // 4

    async def append(self, batch: Sequence[Append]) -> None:
        """Seal and write."""
        await self._log.append(
            [
                msgspec.structs.replace(
                    append, events=tuple(self._seal(append.request, event) for event in append.events)
                )
                for append in batch
            ]
        )

    async def read(self, request: bytes, lane: int, *, after: int = -1) -> Sequence[Event]:
        """Read and open."""
        return [self._open(request, event) for event in await self._log.read(request, lane, after=after)]

    async def follow(self, request: bytes, lane: int, *, after: int = -1) -> AsyncGenerator[Sequence[Event]]:
        """Follow and open."""
        async with aclosing(_generator(self._log.follow(request, lane, after=after))) as batches:
            async for events in batches:
                yield [self._open(request, event) for event in events]

    async def forget(self, requests: Sequence[tuple[bytes, int]]) -> None:
        """Drop events."""
        await self._log.forget(requests)

    def _seal(self, request: bytes, event: Event) -> Event:
        if not isinstance(event, Token | Completed | Failed):
            return event
        text = _EVENT + base64.b64encode(self._sealer.seal(request, _encode(event))).decode()
        match event:
            case Token():
                return Token(seq=event.seq, text=text, index=event.index)
            case Completed():
                return Completed(seq=event.seq, finish_reason=text)
            case Failed():
                return Failed(seq=event.seq, kind=event.kind, message=text)

    def _open(self, request: bytes, event: Event) -> Event:
        match event:
            case Token():
                text = event.text
            case Completed():
                text = event.finish_reason
            case Failed():
                text = event.message
            case _:
                return event
        if not text.startswith(_EVENT):
            return event
        return _decode(self._sealer.open(request, base64.b64decode(text[len(_EVENT) :])))


def _generator(batches: AsyncIterator[Sequence[Event]]) -> AsyncGenerator[Sequence[Event]]:
    """Return an iterator as what it is: every log's is a generator, which can be closed."""
    return cast("AsyncGenerator[Sequence[Event]]", batches)
