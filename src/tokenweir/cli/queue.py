"""``weir queue``: how the queue stands, its dead letters, and the keys that it is sealed with."""

from __future__ import annotations

import asyncio
import http.client
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar, cast
from urllib.parse import urlsplit

import click
import msgspec

from tokenweir.app import Settings
from tokenweir.app.gateway import Yard, open_yard
from tokenweir.cli.access_view import need_database
from tokenweir.cli.start import start
from tokenweir.cli.tables import Column, echo_table
from tokenweir.config import Secret
from tokenweir.core.errors import InputError, UnreachableError, UpstreamError
from tokenweir.core.ids import parse_id, uuid7
from tokenweir.core.requests import Json
from tokenweir.gateway.queued.kept import request_id

_COLUMNS: Final = (
    Column("request", fixed=True),
    Column("model"),
    Column("attempts", number=True),
    Column("last error"),
)
_LISTED: Final = 1000
_WAIT_S: Final = 30.0
_GOOD: Final = range(200, 300)

T = TypeVar("T")


class Place:
    """Where the queue is: in the stores of the settings, or behind a gateway that runs."""

    def __init__(self, settings: Settings, url: str | None, key: str | None) -> None:
        self._settings = settings
        self._url = url
        self._key = key

    def remote(self, method: str, path: str) -> dict[str, Json] | None:
        """Ask the gateway; ``None`` where none was named.

        Raises:
            InputError: the key is not said, or not as a reference.
            UnreachableError: nothing answers at the URL.
            UpstreamError: it answers with an error.
        """
        if self._url is None:
            return None
        if self._key is None or not self._key.startswith(("env:", "file:")):
            raise InputError("--url needs --key", mend="write --key env:NAME or --key file:PATH")
        parts = urlsplit(self._url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(parts.hostname or "", parts.port, timeout=_WAIT_S)
        try:
            headers = {"authorization": f"Bearer {Secret(self._key).read()}"}
            connection.request(method, f"{parts.path.rstrip('/')}{path}", headers=headers)
            answer = connection.getresponse()
            body = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise UnreachableError(f"{self._url} cannot be asked: {error}") from error
        finally:
            connection.close()
        told = cast("dict[str, Json]", msgspec.json.decode(body)) if body else {}
        if answer.status not in _GOOD:
            error = cast("dict[str, str]", told.get("error", {}))
            raise UpstreamError(error.get("message", f"{self._url} answered {answer.status}"))
        return told

    def local(self, work: Callable[[Yard], Awaitable[T]], *, writes: bool) -> T:
        """Work on the stores themselves.

        Raises:
            ConfigError: another process has them open.
            NotFoundError: there are none.
        """
        need_database(self._settings.stores.gateway)

        async def run() -> T:
            async with open_yard(self._settings, writes=writes) as yard:
                return await work(yard)

        return asyncio.run(run())


@click.group()
@click.option(
    "--url", metavar="URL", help="A gateway that runs; without one the stores themselves are opened."
)
@click.option(
    "--key", metavar="REF", help="Where a key with the scope admin is found: env:NAME or file:PATH."
)
@click.pass_context
def command(ctx: click.Context, *, url: str | None, key: str | None) -> None:
    """Look at the queue, and at the requests that were given up.

    Reading works beside a gateway that runs. Embedded stores have one writing process: to change something while it
    runs, name it with --url.
    """
    ctx.obj = Place(start(), url, key)


@command.command()
@click.pass_obj
def status(place: Place) -> None:
    """Show how many jobs wait, are in work and are dead."""
    told = place.remote("GET", "/v1/queue")
    if told is None:

        async def depth(yard: Yard) -> dict[str, Json]:
            return cast("dict[str, Json]", msgspec.to_builtins(await yard.jobs.depth()))

        told = place.local(depth, writes=False)
    for name in ("ready", "unacknowledged", "dead"):
        click.echo(f"{name:15} {told[name]}")
    oldest = f"{cast('int', told['oldest_ns']) / 1e9:.1f} s" if told["ready"] else "–"
    click.echo(f"{'oldest':15} {oldest}")


@command.group()
def dead() -> None:
    """Show, replay and drop dead letters."""


@dead.command("list")
@click.pass_obj
def list_dead(place: Place) -> None:
    """List dead letters, oldest first: id, model, attempts, last error."""
    told = place.remote("GET", "/v1/queue/dead")
    if told is None:

        async def listed(yard: Yard) -> dict[str, Json]:
            return {"data": [letter.told() for letter in await yard.graveyard.listed(_LISTED)]}

        told = place.local(listed, writes=False)
    letters = cast("list[dict[str, Json]]", told["data"])
    if letters:
        echo_table(_COLUMNS, [_row(letter) for letter in letters])
    else:
        click.echo("No dead letters.", err=True)


@dead.command()
@click.argument("request")
@click.pass_obj
def show(place: Place, request: str) -> None:
    """Show a dead letter with its errors and its events, as JSON."""
    told = place.remote("GET", f"/v1/queue/dead/{request}")
    if told is None:
        raw = _raw(request)

        async def shown(yard: Yard) -> dict[str, Json]:
            letter = await yard.graveyard.show(raw)
            return {**letter.told(), "events": cast("Json", msgspec.to_builtins(letter.events))}

        told = place.local(shown, writes=False)
    click.echo(msgspec.json.format(msgspec.json.encode(told)).decode())


@dead.command()
@click.argument("request")
@click.pass_obj
def replay(place: Place, request: str) -> None:
    """Have a dead job done again; prints the request that does it.

    A request that has ended stays as it is: its body is taken on anew, under a new id.
    """
    told = place.remote("POST", f"/v1/queue/dead/{request}")
    if told is None:
        raw = _raw(request)
        fresh = uuid7(time.time_ns(), secrets.randbits(62)).to_bytes(16, "big")
        done = place.local(lambda yard: yard.graveyard.replay(raw, fresh), writes=True)
        told = {"request_id": request_id(done)}
    click.echo(told["request_id"])


@dead.command()
@click.argument("request")
@click.pass_obj
def drop(place: Place, request: str) -> None:
    """Forget a dead job. The request, its events and what it was charged stay."""
    if place.remote("DELETE", f"/v1/queue/dead/{request}") is None:
        raw = _raw(request)
        place.local(lambda yard: yard.graveyard.drop(raw), writes=True)


@command.command()
@click.pass_obj
def rotate(place: Place) -> None:
    """Seal all stored bodies and logs anew with the first of gateway.seal_keys; afterwards the others can go.

    The gateway must not run.
    """
    done = place.local(lambda yard: yard.rotate(), writes=True)
    click.echo(f"{done} requests sealed anew")


def _row(letter: dict[str, Json]) -> tuple[str, ...]:
    errors = cast("list[str]", letter["errors"])
    return (
        str(letter["request_id"]),
        str(letter["model"]) or "–",
        str(letter["attempt"]),
        errors[-1] if errors else "–",
    )


def _raw(text: str) -> bytes:
    return parse_id(text, prefix="req").uuid.to_bytes(16, "big")
