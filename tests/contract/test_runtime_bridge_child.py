"""The child's end of the bridge, talked to in raw frames: what it refuses, and how it ends."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable

import msgspec
import pytest

from tokenweir.core.errors import ProtocolError
from tokenweir.ports.inference import DeviceMemory
from tokenweir.runtime.bridge.framing import FrameReader, seal
from tokenweir.runtime.bridge.messages import Code, Fault, Ping, Pong, Tokenize, Tokens
from tokenweir.runtime.bridge.server import BridgeServer


def ping(_params: Ping) -> Pong:
    memory = DeviceMemory(active_bytes=1, cached_bytes=2, limit_bytes=3)
    return Pong(epoch=1, rss_bytes=5, memory=memory, streams=0, stalled_ns=0)


def tokenize(params: Tokenize) -> Tokens:
    return Tokens(tokens=tuple(params.text.encode()))


def server(sock: socket.socket) -> BridgeServer:
    return BridgeServer(sock, {"ping": ping, "tokenize": tokenize}, {})


def sealed(text: bytes) -> bytes:
    return bytes(seal(bytearray(4) + text))


def exchange(payloads: list[bytes], answers: int) -> list[bytes]:
    """Send raw frames to a server and return its answers."""
    ours, theirs = socket.socketpair()
    thread = threading.Thread(target=server(theirs).serve)
    thread.start()
    got: list[bytes] = []
    reader = FrameReader()
    with ours:
        ours.settimeout(5)
        ours.sendall(b"".join(sealed(one) for one in payloads))
        while len(got) < answers:
            got += reader.feed(ours.recv(65_536))
    thread.join(5)
    theirs.close()
    assert not thread.is_alive()
    return got


REFUSALS: dict[str, tuple[bytes, int, int | None]] = {
    "no JSON": (b"nonsense", Code.PARSE, None),
    "no request": (b'{"jsonrpc":"2.0","id":"x"}', Code.INVALID_REQUEST, None),
    "no method": (b'{"jsonrpc":"2.0","id":4}', Code.INVALID_REQUEST, 4),
    "an unknown method": (b'{"jsonrpc":"2.0","id":4,"method":"rm"}', Code.METHOD_NOT_FOUND, 4),
    "misshapen parameters": (
        b'{"jsonrpc":"2.0","id":4,"method":"tokenize","params":{"model":1}}',
        Code.INVALID_PARAMS,
        4,
    ),
}


class _Refusal(msgspec.Struct):
    id: int | None
    error: Fault


@pytest.mark.parametrize("refusal", REFUSALS)
def test_the_child_refuses_what_it_cannot_read_and_reads_on(refusal: str) -> None:
    payload, code, number = REFUSALS[refusal]
    gossip = b'{"jsonrpc":"2.0","method":"gossip","params":{}}'
    ping = b'{"jsonrpc":"2.0","id":5,"method":"ping","params":{}}'
    refused, pong = exchange([gossip, payload, ping], answers=2)
    got = msgspec.json.decode(refused, type=_Refusal)
    assert (got.error.code, got.id) == (code, number)
    assert b'"id":5' in pong


def test_the_child_ends_with_an_error_where_the_stream_was_cut() -> None:
    ours, theirs = socket.socketpair()
    failed: list[Exception] = []

    def serve(run: Callable[[], None]) -> None:
        try:
            run()
        except ProtocolError as error:
            failed.append(error)

    thread = threading.Thread(target=serve, args=(server(theirs).serve,))
    thread.start()
    ours.sendall(sealed(b"x" * 100)[:50])
    ours.close()
    thread.join(5)
    theirs.close()
    assert len(failed) == 1
    assert "50 bytes into a frame" in str(failed[0])
