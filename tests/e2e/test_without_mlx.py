"""Where MLX is not installed, what would serve a real model says so and goes on with a simulated one."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import openai
import pytest
from tests.e2e.running import WITHOUT_MLX, started

DEADLINE_S = 60.0


def wait_for(text: str, log: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while text not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


def end(process: subprocess.Popen[str]) -> int:
    process.send_signal(signal.SIGINT)
    return process.wait(DEADLINE_S)


@pytest.mark.timeout(150)
def test_the_demo_measures_a_second_simulator_and_says_so(tmp_path: Path) -> None:
    log = tmp_path / "log"
    demo = ("demo", "--quick", "--out", str(tmp_path / "demo"))
    with started(*demo, log=log, command=WITHOUT_MLX) as process:
        wait_for("in the place of a real model", log, process)
        wait_for("--backend openai", log, process)
        assert end(process) == 130, log.read_text()
    said = log.read_text()
    assert "no real model server: no real model can be served: MLX is not installed; pip install" in said
    assert "instead, a second simulator answers as an OpenAI server: http://" in said
    assert "behind weir runtime" not in said


@pytest.mark.timeout(150)
def test_the_gateway_serves_a_simulated_model_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEIR_HOME", str(tmp_path / "home"))
    log = tmp_path / "log"
    with started("up", "--port", "0", log=log, command=WITHOUT_MLX) as process:
        wait_for("(shown once", log, process)
        lines = [line.split() for line in log.read_text().splitlines()]
        (url,) = [words[2] for words in lines if words[:2] == ["weir", "up:"]]
        (key,) = [words[1] for words in lines if words[:1] == ["key"]]
        with openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=30) as client:
            told = client.chat.completions.create(
                model="sim", messages=[{"role": "user", "content": "What is 38 + 47?"}], max_tokens=4
            )
        assert told.choices[0].message.content
        assert end(process) == 0, log.read_text()
    assert "MLX is not installed, so this model is simulated and makes up its answers" in log.read_text()
