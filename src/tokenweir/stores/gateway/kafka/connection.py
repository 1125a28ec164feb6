"""What all that speaks with Kafka shares: where it is, its topic, and what its errors mean."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Generator
from typing import Any, Final, cast
from urllib.parse import parse_qsl

import aiokafka
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError
from aiokafka.helpers import create_ssl_context

from tokenweir.core.errors import ConfigError, UnavailableError

_SCHEMES: Final = ("kafka://", "kafkas://")
_TLS: Final = {"ca": "cafile", "certificate": "certfile", "key": "keyfile"}
_TOPIC_EXISTS: Final = 36
_REPLICAS: Final = 3
_KNOWN_S: Final = 30.0
_LOOK_S: Final = 0.05
MESSAGE_BYTES: Final = 8_388_608
"""The largest record: an answer's vectors come in one event."""


class KafkaServers:
    """The brokers of ``kafka://HOST:PORT[,HOST:PORT…][/PREFIX]``; ``prefix`` begins the names of topics.

    ``kafkas://`` speaks TLS; its parameters ``ca``, ``certificate`` and ``key`` name PEM files.
    """

    def __init__(self, url: str, *, prefix: str = "") -> None:
        place, _, query = url.partition("?")
        scheme = next((each for each in _SCHEMES if place.startswith(each)), None)
        self.name, _, path = place.removeprefix(scheme or "").partition("/")
        if scheme is None or not self.name:
            raise ConfigError(f"{url!r} names no Kafka", mend=f"write {_SCHEMES[0]}HOST:PORT")
        self.prefix = prefix or path
        self._secured: dict[str, object] = {} if scheme == _SCHEMES[0] else _over_tls(query)

    def producer(self) -> Any:  # noqa: ANN401 - the client's types are unknown
        """Return a producer, not started: what it has sent is on all replicas in sync, perhaps twice.

        Readers take a seq once. A producer that numbers its records would never work again after one was given up.
        """
        return cast("Any", aiokafka.AIOKafkaProducer)(
            **self.reached(),
            acks="all",
            max_request_size=MESSAGE_BYTES,
            max_batch_size=1_048_576,
            request_timeout_ms=15_000,
        )

    def consumer(self, *, wait_ms: int, bytes_each: int = MESSAGE_BYTES) -> Any:  # noqa: ANN401 - the client's types are unknown
        """Return a consumer without a group, not started.

        A poll waits ``wait_ms`` for something new, and reads up to ``bytes_each`` of a partition at once.
        """
        return self._consumer(wait_ms, max_partition_fetch_bytes=bytes_each)

    def member(self, group: str, *, wait_ms: int) -> Any:  # noqa: ANN401 - the client's types are unknown
        """Return a consumer in a group, not started. Lost, its partitions go to others after 10 s."""
        return self._consumer(
            wait_ms,
            max_partition_fetch_bytes=1_048_576,
            group_id=group,
            session_timeout_ms=10_000,
            heartbeat_interval_ms=1_000,
            # It reads no more while enough waits, and stays a member.
            max_poll_interval_ms=2**31 - 1,
        )

    def _consumer(self, wait_ms: int, **others: object) -> Any:  # noqa: ANN401 - the client's types are unknown
        return cast("Any", aiokafka.AIOKafkaConsumer)(
            **self.reached(),
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            fetch_max_wait_ms=wait_ms,
            request_timeout_ms=15_000,
            **others,
        )

    def reached(self) -> dict[str, object]:
        """Return what every client needs to reach the brokers."""
        return {"bootstrap_servers": self.name, **self._secured}

    async def make_topic(
        self, name: str, *, partitions: int, retention_ms: int, compacted: bool = False
    ) -> None:
        """Make a topic; one that is there must have that many partitions. ``compacted``: keys keep their last record.

        Raises:
            ConfigError: it has another number of partitions.
            UnavailableError: Kafka cannot be reached.
        """
        admin = cast("Any", AIOKafkaAdminClient)(**self.reached())
        with self.explained():
            try:
                await admin.start()
                brokers = len(admin._client.cluster.brokers())  # noqa: SLF001 - it has no other way to say it
                topic = NewTopic(
                    name,
                    partitions,
                    min(_REPLICAS, max(1, brokers)),
                    topic_configs={
                        "retention.ms": str(retention_ms),
                        "cleanup.policy": "compact" if compacted else "delete",
                        "max.message.bytes": str(MESSAGE_BYTES),
                        # Where a request's events begin is found by time, so all of it is the broker's.
                        "message.timestamp.type": "LogAppendTime",
                    },
                )
                answer = await admin.create_topics([topic])
                code, reason = answer.topic_errors[0][1:3]
                if code not in {0, _TOPIC_EXISTS}:
                    raise UnavailableError(f"the topic {name!r} cannot be made: {reason}")
                found = await _partitions(admin, name)
                if found != partitions:
                    raise ConfigError(
                        f"the topic {name!r} has {found} partitions instead of {partitions}",
                        mend="remove it while nothing runs, or give another prefix",
                    )
            finally:
                await admin.close()

    @contextlib.contextmanager
    def explained(self) -> Generator[None]:
        """Raise what goes wrong with the brokers as UnavailableError."""
        try:
            yield
        except (KafkaError, OSError, TimeoutError) as error:
            raise UnavailableError(
                f"Kafka {self.name!r} cannot be used: {error or type(error).__name__}",
                mend="see that Kafka runs and can be reached",
            ) from error


def _over_tls(query: str) -> dict[str, object]:
    """Return what the client needs for TLS 1.2 and above. Raises ConfigError."""
    given = dict(parse_qsl(query))
    strange = set(given) - set(_TLS)
    if strange:
        raise ConfigError(
            f"a Kafka URL has no parameter {min(strange)!r}", mend=f"there are {', '.join(_TLS)}"
        )
    files = {_TLS[name]: path for name, path in given.items()}
    try:
        context = create_ssl_context(**files)
    except OSError as error:
        raise ConfigError(
            f"the TLS files of Kafka's URL cannot be used: {error}", mend="name readable PEM files"
        ) from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return {"security_protocol": "SSL", "ssl_context": context}


async def _partitions(admin: Any, name: str) -> int:  # noqa: ANN401 - the client's types are unknown
    """Return how many partitions a topic has; one that was just made is not known everywhere at once."""
    async with asyncio.timeout(_KNOWN_S):
        while True:
            (found,) = await admin.describe_topics([name])
            if found["partitions"]:
                return len(found["partitions"])
            await asyncio.sleep(_LOOK_S)
