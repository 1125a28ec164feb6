from __future__ import annotations

import http.client
import importlib.util
import json
from pathlib import Path

import pytest
from tests.factories.model_server import ModelServer
from tests.factories.tiny_model import ModelShape, build_tiny_model

from tokenweir.core.errors import ResourceError

pytestmark = pytest.mark.skipif(importlib.util.find_spec("mlx_lm") is None, reason="needs the extra 'demo'")

SMALL = ModelShape(vocabulary=400, hidden=32, layers=1, feed_forward=48)


def test_it_serves_the_tiny_model_and_ends_with_the_block(tmp_path: Path) -> None:
    directory = build_tiny_model(tmp_path / "model", ["the weir holds the water back"] * 4, shape=SMALL)
    with ModelServer(directory, tmp_path / "server.log") as server:
        host = server.url.removeprefix("http://")
        connection = http.client.HTTPConnection(host, timeout=30)
        body = {"model": server.model, "prompt": "the water", "max_tokens": 5}
        connection.request("POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"})
        answer = connection.getresponse()
        usage = json.loads(answer.read())["usage"]
        connection.close()
        pid = server.pid
    assert usage["completion_tokens"] == 5
    assert pid is not None
    assert not Path(f"/proc/{pid}").exists()


def test_a_model_that_cannot_be_loaded_is_told_with_the_servers_words(tmp_path: Path) -> None:
    directory = build_tiny_model(tmp_path / "model", ["the weir holds the water back"] * 4, shape=SMALL)
    (directory / "model.safetensors").write_bytes(b"not weights")
    with (
        pytest.raises(ResourceError, match=r"mlx_lm\.server did not start") as caught,
        ModelServer(directory, tmp_path / "server.log"),
    ):
        pass
    assert "server.log" in caught.value.mend
