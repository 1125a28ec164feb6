"""RabbitMQ, from the system's packages."""

from __future__ import annotations

import base64
import shlex
import signal
import struct
import subprocess
import urllib.request
import uuid
from collections.abc import Mapping
from pathlib import Path

from deploy.services.ports import LOOPBACK
from deploy.services.process import Command
from deploy.services.service import PASSWORD, USER, Service, Site, ask, find_program, plain_environment

from tokenweir.core.errors import ResourceError

_SERVER_PLACES = (Path("/usr/lib/rabbitmq/bin"), Path("/opt/homebrew/sbin"), Path("/usr/local/sbin"))
_METHOD_FRAME = 1
_CONNECTION_START = (10, 10)
_ADMIN_TIMEOUT_S = 20.0


class RabbitMQ(Service):
    """A broker of one node. It has a name server of its own, so several can run on one machine.

    As a process it runs without plugins: the management door alone doubles the time it takes to start and to stop.
    """

    name = "rabbitmq"
    # The second is used by the container alone, the others by the process alone.
    ports = ("amqp", "management", "distribution", "epmd")
    stop_signal = signal.SIGTERM

    def require(self, cache: Path) -> None:
        """Need the server and Erlang's name server."""
        del cache
        _server()
        find_program("epmd", "erlang-base")

    def fetch(self, cache: Path) -> None:
        """Need nothing more."""
        del cache

    def prepare(self, site: Site) -> Command:
        """Write the settings."""
        site.home.mkdir(parents=True, exist_ok=True)
        settings, plugins = site.home / "rabbitmq.conf", site.home / "enabled_plugins"
        settings.write_text(_settings(site.ports))
        plugins.write_text("[].\n")
        environment = plain_environment(site.home) | {
            "ERL_CRASH_DUMP": str(site.home / "erl_crash.dump"),
            "ERL_EPMD_ADDRESS": LOOPBACK,
            "ERL_EPMD_PORT": str(site.ports["epmd"]),
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_CONFIG_FILE": str(settings),
            "RABBITMQ_DIST_PORT": str(site.ports["distribution"]),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(plugins),
            "RABBITMQ_LOG_BASE": str(site.home / "log"),
            "RABBITMQ_MNESIA_BASE": str(site.home / "data"),
            "RABBITMQ_NODENAME": "weir@localhost",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            # The script then becomes the broker, so that signals reach it.
            "RUNNING_UNDER_SYSTEMD": "true",
        }
        return Command(["/bin/sh", "-c", _script()], environment)

    def ready(self, ports: Mapping[str, int]) -> bool:
        """Greet it in AMQP."""
        # The listener is the last thing that a starting broker opens.
        answer = ask(ports["amqp"], b"AMQP\0\0\x09\x01", 11)
        if len(answer) < 11:  # noqa: PLR2004 - a frame's header, class and method
            return False
        kind, _channel, _size, klass, method = struct.unpack(">BHIHH", answer)
        return kind == _METHOD_FRAME and (klass, method) == _CONNECTION_START

    def urls(self, ports: Mapping[str, int]) -> dict[str, str]:
        """Return the URL of the virtual host ``/``."""
        return {"rabbitmq": f"amqp://{USER}:{PASSWORD}@{LOOPBACK}:{ports['amqp']}/"}


def add_vhost(site: Site, name: str) -> str:
    """Make the virtual host ``name``, all rights on it for the one user, and return its URL.

    Raises:
        ResourceError: the broker refused, or is not there.
    """
    _check(name)
    rights = f'<<"{USER}">>, <<"{name}">>, <<".*">>, <<".*">>, <<".*">>, <<"{USER}">>'
    if _cookie(site).is_file():
        _evaluate(
            site,
            f'ok = rabbit_vhost:add(<<"{name}">>, <<"{USER}">>),'
            f"ok = rabbit_auth_backend_internal:set_permissions({rights}).",
        )
    else:
        # The maker of a virtual host is given all rights on it.
        _manage(site, "PUT", f"/api/vhosts/{name}")
    return f"amqp://{USER}:{PASSWORD}@{LOOPBACK}:{site.ports['amqp']}/{name}"


def delete_vhost(site: Site, name: str) -> None:
    """Remove the virtual host ``name`` with all queues in it; its connections are closed.

    Raises:
        ResourceError: the broker refused, or is not there.
    """
    _check(name)
    if _cookie(site).is_file():
        _evaluate(site, f'ok = rabbit_vhost:delete(<<"{name}">>, <<"{USER}">>).')
    else:
        _manage(site, "DELETE", f"/api/vhosts/{name}")


def _check(name: str) -> None:
    if not name.replace("-", "").isalnum():
        raise ValueError(f"virtual host {name!r} has other signs than letters, digits and hyphens")


def _cookie(site: Site) -> Path:
    """Return the secret by which one Erlang node admits another; only a process of ours has it here."""
    return site.home / ".erlang.cookie"


def _evaluate(site: Site, expression: str) -> None:
    """Have the broker evaluate ``expression``: a thousandth of the time that its command line tool needs."""
    program = find_program("erl_call", "erlang-base")
    # Two callers of one name would turn each other away.
    caller = f"weir{uuid.uuid4().hex}"
    argv = [str(program), "-e", "-h", caller, "-address", f"{LOOPBACK}:{site.ports['distribution']}"]
    try:
        done = subprocess.run(
            [*argv, "-c", _cookie(site).read_text().strip()],
            input=f"{expression}\n",
            capture_output=True,
            text=True,
            check=False,
            timeout=_ADMIN_TIMEOUT_S,
            env=plain_environment(site.home),
        )
    except subprocess.TimeoutExpired as error:
        raise ResourceError(
            f"RabbitMQ did not answer in {_ADMIN_TIMEOUT_S:g} s", mend="see its log"
        ) from error
    if done.returncode or not done.stdout.startswith("{ok"):
        said = (done.stdout + done.stderr).strip()
        raise ResourceError(f"RabbitMQ refused {expression!r}: {said}", mend=f"see {site.home}/log.txt")


def _manage(site: Site, method: str, path: str) -> None:
    """Ask the management door of the container."""
    key = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    request = urllib.request.Request(
        f"http://{LOOPBACK}:{site.ports['management']}{path}",
        method=method,
        headers={"authorization": f"Basic {key}"},
    )
    try:
        with urllib.request.urlopen(request, timeout=_ADMIN_TIMEOUT_S):  # noqa: S310
            pass
    except OSError as error:
        raise ResourceError(f"RabbitMQ refused {method} {path}: {error}", mend="see its log") from error


def _server() -> Path:
    """Return the server's own script; Debian's wrapper on PATH changes user and folder."""
    for place in _SERVER_PLACES:
        if (place / "rabbitmq-server").is_file():
            return place / "rabbitmq-server"
    return find_program("rabbitmq-server", "rabbitmq-server")


def _script() -> str:
    """Return the shell script that becomes the broker, its name server beside it.

    A broker that finds no name server starts one that outlives it.
    """
    epmd = shlex.quote(str(find_program("epmd", "erlang-base")))
    waiting = f"until {epmd} -names >/dev/null 2>&1; do kill -0 $! || exit 1; sleep 0.05; done"
    return f"{epmd} & {waiting}; exec {shlex.quote(str(_server()))}"


def _settings(ports: Mapping[str, int]) -> str:
    lines = {
        "listeners.tcp.1": f"{LOOPBACK}:{ports['amqp']}",
        "default_user": USER,
        "default_pass": PASSWORD,
        "log.console": "true",
        "log.console.level": "warning",
        "log.console.use_colors": "off",
        "log.file": "false",
        "vm_memory_high_watermark.absolute": "1GB",
        "disk_free_limit.absolute": "100MB",
        # The write-ahead log is kept in memory as well, up to this size.
        "raft.wal_max_size_bytes": 64 * 1024 * 1024,
    }
    return "".join(f"{name} = {value}\n" for name, value in lines.items())
