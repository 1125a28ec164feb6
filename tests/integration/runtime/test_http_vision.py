"""The official client shows images to a real model that sees, made for the purpose."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam
from tests.factories.served import Served, serve
from tests.factories.sim_models import directory
from tests.factories.vision_models import png, random_qwen2_vl


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    pytest.importorskip("mlx_vlm")
    place = tmp_path_factory.mktemp("sees")
    with serve(random_qwen2_vl(place / "eye"), log=place / "log") as served:
        yield served


@pytest.fixture
def client(server: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=60) as made:
        yield made


def showing(*images: bytes) -> list[ChatCompletionMessageParam]:
    urls = [f"data:image/png;base64,{base64.b64encode(image).decode()}" for image in images]
    return [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "what is this?"},
                *({"type": "image_url", "image_url": {"url": url}} for url in urls),
            ],
        }
    ]


def asked(client: openai.OpenAI, messages: list[ChatCompletionMessageParam]) -> tuple[str, int]:
    answer = client.chat.completions.create(model="eye", messages=messages, max_tokens=12, temperature=0)
    assert answer.usage is not None
    return answer.choices[0].message.content or "", answer.usage.prompt_tokens


def test_what_is_seen_decides_the_answer(server: Served, client: openai.OpenAI) -> None:
    red, read = asked(client, showing(png(56, 56, (250, 10, 10))))
    again, _ = asked(client, showing(png(56, 56, (250, 10, 10))))
    green, _ = asked(client, showing(png(56, 56, (10, 250, 10))))
    _, read_two = asked(client, showing(png(56, 56), png(56, 56)))
    _, unseen = asked(client, [{"role": "user", "content": "what is this?"}])
    assert red == again
    assert red != green
    assert unseen < read < read_two
    health = json.loads(server.get("/health")[1])["engine"]
    assert "vision" in {device["name"] for device in health["devices"]}


def test_an_image_that_cannot_be_read_is_refused_and_the_server_stays(
    server: Served, client: openai.OpenAI
) -> None:
    whole = png(56, 56)
    for image, code in (
        (b"not an image", "invalid_image"),
        (whole[:20], "invalid_image"),
        (whole[: len(whole) // 2], "bad_input"),
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            asked(client, showing(image))
        assert caught.value.code == code
    with pytest.raises(openai.BadRequestError, match="at most"):
        asked(client, showing(*[png(28, 28)] * 17))
    assert server.get("/ready")[0] == 200


def test_a_model_that_does_not_see_says_so(tmp_path: Path) -> None:
    blind = directory(tmp_path / "eye", capabilities=["chat", "completion"])
    with (
        serve(blind, log=tmp_path / "log") as served,
        openai.OpenAI(base_url=served.url + "/v1", api_key="none", max_retries=0) as client,
        pytest.raises(openai.BadRequestError, match="does not support images"),
    ):
        asked(client, showing(png(28, 28)))
