"""``weir up`` without endpoints: the model that ships, served to the gateway alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.factories.gateways import GatewayProcess, gateway
from tokenizers import Tokenizer

from tokenweir.runtime.process import can_serve
from tokenweir.runtime.shipped import shipped_model

pytestmark = pytest.mark.skipif(not can_serve(), reason="needs the extra 'runtime'")


def test_its_key_is_known_and_its_address_is_its_own(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("s3cret", encoding="utf-8")
    with gateway(f'[runtime]\napi_key = "file:{key}"\nhost = "0.0.0.0"\n') as door:
        told = door.client().chat.completions.create(
            model="good", messages=[{"role": "user", "content": "What is 38 + 47?"}], max_tokens=8
        )
        assert told.choices[0].message.content
        # What is set aside for a prompt is counted with the model's own tokenizer.
        assert door.weir("users", "add", "ada").returncode == 0
        assert door.weir("quotas", "set", "9999", "tokens", "--per", "day", "--user", "ada").returncode == 0
        client = door.client(door.weir("keys", "create", "ada").stdout.strip())
        asked = client.completions.with_raw_response.create(
            model="good", prompt="38 + 47 = " * 20, max_tokens=1
        )
        model = shipped_model()
        assert model is not None
        tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
        prompt = len(tokenizer.encode("38 + 47 = " * 20, add_special_tokens=False).ids)
        assert 9999 - int(asked.headers["x-ratelimit-remaining-tokens"]) == prompt + 1
        assert "http://127.0.0.1:" in (door.home / "runtime.log").read_text(encoding="utf-8")


def test_a_second_start_is_refused_before_it_starts_a_model(tmp_path: Path) -> None:
    with gateway("") as door:
        log = door.home / "runtime.log"
        told = log.read_bytes()
        same_home = door.weir("up", "--port", "0")
        assert same_home.returncode == 2
        assert same_home.stderr.startswith("weir: another process has the gateway's database")
        assert log.read_bytes().startswith(told)
        same_port = GatewayProcess(tmp_path, "").weir("up", "--port", door.url.rpartition(":")[2])
        assert same_port.returncode == 2
        assert "is in use on" in same_port.stderr
        assert not (tmp_path / "runtime.log").exists()


def test_tls_between_the_two_is_refused_with_what_to_do(tmp_path: Path) -> None:
    made = GatewayProcess(tmp_path, '[runtime.tls]\ncertificate = "server.pem"\nkey = "server.key"\n')
    ended = made.weir("up", "--port", "0")
    assert ended.returncode == 2
    assert ended.stderr.startswith("weir: [runtime.tls] is set, and no endpoint is configured")
    assert "name it in [[endpoints]]" in ended.stderr
    assert ended.stderr.count("\n") == 1
