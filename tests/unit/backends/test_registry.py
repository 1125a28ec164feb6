from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import pytest

from tokenweir.backends.registry import backend, kinds
from tokenweir.backends.sim import SimBackend
from tokenweir.core.errors import ConfigError
from tokenweir.core.requests import GenerateRequest
from tokenweir.ports.backend import HttpResponse


@pytest.mark.parametrize("kind", ["openai", "sglang", "sglang_jax", "sim", "tokenweir"])
def test_a_backend_knows_its_kind(kind: str) -> None:
    assert backend(kind).kind == kind


def test_an_unknown_kind_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="openai, sglang, sglang_jax, sim, tokenweir") as caught:
        backend("vllm")
    assert "'vllm'" in str(caught.value)


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[tokenweir.backends]\nlines = tokenweir.ports.fakes:LineBackend\ngone = tokenweir.absent:X\n"
    )
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])


def test_third_parties_add_theirs_by_entry_point(plugin: None) -> None:
    assert backend("lines").kind == "lines"
    assert kinds() == ("openai", "sglang", "sglang_jax", "sim", "tokenweir", "gone", "lines")
    with pytest.raises(ConfigError, match="gone"):
        backend("gone")


def test_the_simulator_leaves_nothing_out() -> None:
    sim = SimBackend()
    told = b'{"version":"0.1","commit":"c","model":"sim","revision":"r","flags":{"seed":1},"kind":"sim"}'
    identity = sim.identity([HttpResponse(status=200, body=told)])
    assert (identity.version, identity.commit, identity.model, identity.revision) == ("0.1", "c", "sim", "r")
    assert identity.flags == {"seed": 1}
    assert not identity.missing
    assert sim.identity([HttpResponse(status=0)]).missing.keys() == {"version", "commit", "model", "revision"}
    broken = sim.identity([HttpResponse(status=200, body=b'{"version":1}')])
    assert broken.missing.keys() == {"version", "commit", "model", "revision"}


def test_the_simulator_s_doors() -> None:
    sim = SimBackend()
    flush = sim.action("flush", {})
    assert flush is not None
    assert flush.path == "/flush_cache"
    assert sim.action("start_profile", {}) is None
    assert sim.health().path == "/health"
    asked = sim.encode(GenerateRequest(kind="completion", model="sim", prompt="a"))
    assert asked.path == "/v1/completions"
    body = b'{"choices":[{"text":"a","finish_reason":"stop"}],"sent_ns":7}'
    decoder = sim.decoder(GenerateRequest(kind="completion", model="sim", prompt="a", stream=False))
    assert msgspec.structs.asdict(decoder.timing(body))["sent_ns"] == [7]
