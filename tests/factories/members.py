"""Users of a gateway, added to its directory beside it, and what they were charged, without a command for each."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Generator
from contextlib import contextmanager

from tests.factories.gateways import GatewayProcess

from tokenweir.access.directory import Directory, StoredLimit
from tokenweir.gateway.queued.kept import request_id


@contextmanager
def _directory(door: GatewayProcess) -> Generator[Directory]:
    with contextlib.closing(Directory(f"sqlite:///{door.home}/access.db")) as directory:
        yield directory


def member(door: GatewayProcess, name: str, *, requests: int | None = None) -> str:
    """Add a user, who may ask ``requests`` times a month, and return a key."""
    with _directory(door) as directory:
        directory.add_user(name)
    if requests is not None:
        allow(door, name, requests)
    return key_of(door, name)


def key_of(door: GatewayProcess, name: str) -> str:
    """Make another key for a user."""
    with _directory(door) as directory:
        return directory.issue(name, "test")[1]


def allow(door: GatewayProcess, name: str, requests: int) -> None:
    """Let a user ask so often a month."""
    with _directory(door) as directory:
        subject = directory.user(name).id
        directory.set_limit(
            StoredLimit(scope="user", subject=subject, unit="requests", window="month", amount=requests)
        )


def revoke(door: GatewayProcess, name: str) -> None:
    """Revoke all keys of a user."""
    with _directory(door) as directory:
        for key in directory.keys(name):
            directory.revoke(key.id)


def charged(door: GatewayProcess) -> list[str]:
    """Return the requests that the ledger has a row of."""
    uri = f"file:{door.home}/gateway.db?mode=ro"
    with contextlib.closing(sqlite3.connect(uri, uri=True)) as database:
        return [request_id(row[0]) for row in database.execute("SELECT request FROM gateway_ledger")]
