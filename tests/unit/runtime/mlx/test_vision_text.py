from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("mlx_lm", reason="mlx-lm is not installed: needs the extra 'runtime'")

from tests.factories.language_models import random_llama

from tokenweir.core.errors import ParameterError
from tokenweir.core.requests import Json, Message
from tokenweir.runtime.engines.mlx.vision_text import VisionText

IMAGE: dict[str, Json] = {"type": "image"}


def said(text: str) -> dict[str, Json]:
    return {"type": "text", "text": text}


MESSAGES = (
    Message(role="user", content=(IMAGE, said("What is it?"))),
    Message(role="assistant", content="A weir."),
    Message(role="user", content=(said("And "), IMAGE, said("this?"))),
)


@pytest.mark.parametrize(
    ("architecture", "prompt"),
    [
        ("llava", "<|user|><image>\nWhat is it?<|end|>…<|user|>And <image>\nthis?<|end|>"),
        ("phi3_v", "<|user|><|image_1|>\nWhat is it?<|end|>…<|user|>And <|image_2|>\nthis?<|end|>"),
    ],
)
def test_images_have_their_family_s_place_where_the_template_knows_none(
    tmp_path: Path, architecture: str, prompt: str
) -> None:
    text = VisionText(random_llama(tmp_path / "m"), architecture)
    expected = prompt.replace("…", "<|assistant|>A weir.<|end|>") + "<|assistant|>"
    assert text.render(MESSAGES, (), {}) == expected


def test_a_template_that_places_images_does_it_itself(tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}{% for p in m.content %}{{ '[image]' if p.type == 'image' else p.text }}"
        "{% endfor %}{% endfor %}"
    )
    text = VisionText(random_llama(tmp_path / "m", template=template), "llava")
    assert text.render(MESSAGES[:1], (), {}) == "[image]What is it?"


def test_a_prompt_comes_back_as_text_with_its_special_tokens(tmp_path: Path) -> None:
    text = VisionText(random_llama(tmp_path / "m"), "llava")
    rendered = text.render((Message(role="user", content="Grüße 🌊"),), (), {})
    assert text.text_of(text.encode(rendered, special=False)) == rendered
    with pytest.raises(ParameterError, match="token 99999"):
        text.text_of([99999])
