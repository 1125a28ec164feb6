from __future__ import annotations

import http.client
import secrets
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import openai
import pytest
from openai import OpenAI
from tests.factories.gateways import GatewayProcess, gateway
from tests.factories.members import member
from tests.factories.queued import User, named_routes

FILE_BYTES = 2_000_000


@pytest.fixture(scope="module")
def door(endpoints: str, seal_key: str) -> Iterator[GatewayProcess]:
    settings = f"""
[gateway]
seal_keys = ["{seal_key}"]
max_file_bytes = {FILE_BYTES}
max_stored_bytes = {4 * FILE_BYTES}
"""
    with gateway(settings + endpoints) as process:
        yield process


def test_a_file_comes_back_as_it_was_sent(client: OpenAI, door: GatewayProcess) -> None:
    # Several pieces, with what looks like a boundary and like the end of a line.
    sent = secrets.token_bytes(700_000) + b"\r\n--boundary\r\n" + b"plain words " * 1000
    made = client.files.create(file=("Flüsse.bin", sent), purpose="user_data")
    assert (made.bytes, made.filename, made.purpose, made.object) == (
        len(sent),
        "Flüsse.bin",
        "user_data",
        "file",
    )
    assert client.files.retrieve(made.id) == made
    assert client.files.content(made.id).read() == sent
    # It is encrypted where it lies.
    stored = b"".join(path.read_bytes() for path in Path(door.home).glob("gateway.db*"))
    assert b"plain words plain words" not in stored
    assert client.files.delete(made.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.content(made.id)


def test_an_empty_file_is_one(client: OpenAI) -> None:
    made = client.files.create(file=("nothing", b""), purpose="user_data")
    assert client.files.content(made.id).read() == b""
    client.files.delete(made.id)


def test_files_are_listed_page_by_page(door: GatewayProcess) -> None:
    client = door.client(member(door, "filer"))
    names = [
        client.files.create(file=(f"{n}.jsonl", b"x"), purpose="batch" if n % 2 else "user_data").id
        for n in range(5)
    ]
    assert [file.id for file in client.files.list(limit=2)] == names[::-1]
    assert [file.id for file in client.files.list(limit=2, order="asc")] == names
    assert [file.id for file in client.files.list(purpose="batch")] == names[3::-2]
    kept = client.files.create(
        file=("k", b"x"), purpose="user_data", expires_after={"anchor": "created_at", "seconds": 7200}
    )
    assert kept.expires_at == kept.created_at + 7200


def test_a_file_that_is_too_long_leaves_nothing(door: GatewayProcess) -> None:
    client = door.client(member(door, "hoarder"))
    with pytest.raises(openai.APIStatusError) as raised:
        client.files.create(file=("long", b"x" * (FILE_BYTES + 1)), purpose="user_data")
    assert raised.value.status_code == 413
    made = [client.files.create(file=("f", b"x" * FILE_BYTES), purpose="user_data") for _ in range(4)]
    with pytest.raises(openai.BadRequestError, match="together"):
        client.files.create(file=("more", b"x"), purpose="user_data")
    assert {file.id for file in client.files.list()} == {file.id for file in made}
    client.files.delete(made[0].id)
    client.files.create(file=("more", b"x"), purpose="user_data")


def form(*parts: tuple[str, bytes], end: bytes = b"--B--\r\n") -> bytes:
    return b"".join(b"--B\r\n%b\r\n\r\n%b\r\n" % (head.encode(), data) for head, data in parts) + end


FILE = ('Content-Disposition: form-data; name="file"; filename="a"', b"x")
ANCHOR = ('Content-Disposition: form-data; name="expires_after[anchor]"', b"now")
PURPOSE = ('Content-Disposition: form-data; name="purpose"', b"batch")


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        (form(FILE), 400, "purpose"),
        (form(PURPOSE), 400, "file"),
        (form(FILE, FILE, PURPOSE), 400, "body"),
        (form(FILE, PURPOSE, PURPOSE), 400, "body"),
        (form(FILE, PURPOSE, end=b""), 400, "body"),
        (form(FILE, (PURPOSE[0], b"fine-tune")), 400, "purpose"),
        (form(FILE, PURPOSE, ('Content-Disposition: form-data; name="more"', b"1")), 400, "more"),
        (form(FILE, PURPOSE, ANCHOR), 400, "expires_after[anchor]"),
        (form(FILE, (PURPOSE[0], b"b" * 5000)), 400, "purpose"),
        (b"no form at all", 400, "body"),
        (b"", 400, "body"),
    ],
)  # fmt: skip
def test_a_bad_form_is_told_and_nothing_is_kept(user: User, body: bytes, status: int, param: str) -> None:
    before = user.ask("GET", "/v1/files").json()["data"]
    answer = user.ask("POST", "/v1/files", body, content_type="multipart/form-data; boundary=B")
    assert (answer.status, answer.json()["error"]["param"]) == (status, param)
    assert user.ask("GET", "/v1/files").json()["data"] == before


def test_what_is_no_form_is_refused(user: User) -> None:
    assert user.ask("POST", "/v1/files", {"purpose": "batch"}).status == 415


def test_a_sender_who_leaves_has_sent_nothing(user: User) -> None:
    before = user.ask("GET", "/v1/files").json()["data"]
    parts = urlsplit(user.url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port)
    connection.putrequest("POST", "/v1/files")
    connection.putheader("authorization", f"Bearer {user.key}")
    connection.putheader("content-type", "multipart/form-data; boundary=B")
    connection.putheader("content-length", "1000000")
    connection.endheaders(form(PURPOSE, (FILE[0], b"x" * 400_000), end=b""))
    connection.close()
    assert user.ask("GET", "/v1/files").json()["data"] == before


def test_the_same_key_and_file_is_the_same_file(client: OpenAI) -> None:
    headers = {"Idempotency-Key": "file"}
    first = client.files.create(file=("a", b"one"), purpose="user_data", extra_headers=headers)
    assert client.files.create(file=("a", b"one"), purpose="user_data", extra_headers=headers) == first
    with pytest.raises(openai.ConflictError):
        client.files.create(file=("a", b"two"), purpose="user_data", extra_headers=headers)


def test_a_stranger_sees_no_files(client: OpenAI, stranger: User) -> None:
    name = client.files.create(file=("mine", b"secret"), purpose="batch").id
    for method, path in named_routes("/v1/files/", 3):
        assert stranger.ask(method, path.replace("{id}", name)).status == 404, path
    assert stranger.ask("GET", "/v1/files").json()["data"] == []
    assert client.files.content(name).read() == b"secret"
