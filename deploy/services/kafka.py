"""Kafka in KRaft mode, one node, from Apache's jars."""

from __future__ import annotations

import base64
import hashlib
import shutil
import signal
import struct
import subprocess
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path

from deploy.services.ports import LOOPBACK
from deploy.services.process import Command
from deploy.services.service import Service, Site, ask, find_program, plain_environment

from tokenweir.core.errors import ResourceError

POM = Path(__file__).with_name("kafka.pom.xml")
_METADATA = 3
_ANSWER_BYTES = 12


class Kafka(Service):
    """Broker and controller in one process; topics exist once they are created, never by being asked for."""

    name = "kafka"
    ports = ("kafka", "controller")
    stop_signal = signal.SIGTERM

    def require(self, cache: Path) -> None:
        """Need Java, and Maven while the jars are not here."""
        find_program("java", "default-jre-headless")
        if not _jars(cache).is_dir():
            find_program("mvn", "maven")

    def fetch(self, cache: Path) -> None:
        """Resolve the jars with Maven."""
        jars = _jars(cache)
        if jars.is_dir():
            return
        maven = find_program("mvn", "maven")
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            lib = Path(scratch) / "lib"
            done = subprocess.run(
                [
                    *(str(maven), "--batch-mode", "--quiet", "--file", str(POM)),
                    *("dependency:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={lib}"),
                ],
                capture_output=True,
                text=True,
                check=False,
                cwd=scratch,
            )
            if done.returncode or not list(lib.glob("kafka_*.jar")):
                said = (done.stdout + done.stderr).strip()[-800:]
                raise ResourceError(
                    f"Maven could not fetch Kafka: {said}", mend="see that Maven reaches a repository"
                )
            lib.rename(jars)

    def prepare(self, site: Site) -> Command:
        """Write the settings and give the node its identity."""
        self.fetch(site.cache)
        site.home.mkdir(parents=True, exist_ok=True)
        settings = site.home / "server.properties"
        settings.write_text(_settings(site))
        if not (site.home / "data" / "meta.properties").is_file():
            _format(site, settings)
        # Two cores and a few hundred megabytes: the plain collector needs the fewest threads.
        java = _java(site, "-Xms64m", "-Xmx384m", "-XX:+UseSerialGC")
        return Command([*java, "kafka.Kafka", str(settings)], plain_environment(site.home))

    def ready(self, ports: Mapping[str, int]) -> bool:
        """Ask which brokers there are."""
        # Metadata, version 1, of no topic: who are the brokers? None until this one was admitted.
        header = struct.pack(">hhih", _METADATA, 1, 1, -1)
        question = header + struct.pack(">i", 0)
        answer = ask(ports["kafka"], struct.pack(">i", len(question)) + question, _ANSWER_BYTES)
        if len(answer) < _ANSWER_BYTES:
            return False
        _size, _correlation, brokers = struct.unpack(">iii", answer)
        return brokers > 0

    def urls(self, ports: Mapping[str, int]) -> dict[str, str]:
        """Return the broker's address as a URL."""
        return {"kafka": f"kafka://{LOOPBACK}:{ports['kafka']}"}


def _jars(cache: Path) -> Path:
    """Return the folder of the jars; another POM has another one."""
    return cache / f"kafka-{hashlib.sha256(POM.read_bytes()).hexdigest()[:12]}"


def _java(site: Site, *options: str) -> list[str]:
    log = "-Dorg.slf4j.simpleLogger"
    return [
        str(find_program("java", "default-jre-headless")),
        *options,
        f"{log}.defaultLogLevel=warn",
        f"{log}.showDateTime=true",
        f"-XX:ErrorFile={site.home}/hs_err.log",
        "-cp",
        f"{_jars(site.cache)}/*",
    ]


def _format(site: Site, settings: Path) -> None:
    """Give the node's folder its identity, without which a KRaft node does not start."""
    shutil.rmtree(site.home / "data", ignore_errors=True)
    cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
    java = _java(site, "-Xmx128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
    done = subprocess.run(
        [*java, "kafka.tools.StorageTool", "format", f"--cluster-id={cluster}", "-c", str(settings)],
        capture_output=True,
        text=True,
        check=False,
        env=plain_environment(site.home),
    )
    if done.returncode:
        said = (done.stdout + done.stderr).strip()[-800:]
        raise ResourceError(f"Kafka's folder could not be formatted: {said}", mend=f"look at {site.home}")


def _settings(site: Site) -> str:
    broker, controller = site.ports["kafka"], site.ports["controller"]
    lines = {
        "process.roles": "broker,controller",
        "node.id": 1,
        "controller.quorum.voters": f"1@{LOOPBACK}:{controller}",
        "listeners": f"PLAINTEXT://{LOOPBACK}:{broker},CONTROLLER://{LOOPBACK}:{controller}",
        "advertised.listeners": f"PLAINTEXT://{LOOPBACK}:{broker}",
        "controller.listener.names": "CONTROLLER",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "log.dirs": site.home / "data",
        "auto.create.topics.enable": "false",
        # One broker can hold one copy.
        "default.replication.factor": 1,
        "offsets.topic.replication.factor": 1,
        "share.coordinator.state.topic.replication.factor": 1,
        "share.coordinator.state.topic.min.isr": 1,
        "transaction.state.log.replication.factor": 1,
        "transaction.state.log.min.isr": 1,
        # Each partition costs files and memory, and one consumer is ready sooner than fifty.
        "offsets.topic.num.partitions": 1,
        "transaction.state.log.num.partitions": 1,
        "group.initial.rebalance.delay.ms": 0,
        "log.index.size.max.bytes": 1024 * 1024,
        "log.cleaner.dedupe.buffer.size": 4 * 1024 * 1024,
        "num.io.threads": 2,
        "num.network.threads": 2,
        # After a kill the broker is admitted again once its former session has run out.
        "broker.heartbeat.interval.ms": 500,
        "broker.session.timeout.ms": 4000,
    }
    return "".join(f"{name}={value}\n" for name, value in lines.items())
