from __future__ import annotations

import json
import shutil
from pathlib import Path

import msgspec
import pytest
from tests.contract.mlx.conftest import Load
from tests.contract.mlx.decoding import GREEDY, LIMITS, asked, decoder_of, one
from tests.factories.language_models import random_llama

from tokenweir.core.errors import InputError
from tokenweir.ports.inference import Decoder, Decoding, LoadedModel

DRAFTED = msgspec.structs.replace(GREEDY, use_draft=True, draft_tokens=4)


@pytest.fixture(scope="module")
def paired(load: Load, models: dict[str, Path]) -> LoadedModel:
    return load(models["target"], draft=models["draft"])


@pytest.fixture(scope="module")
def sure(load: Load, models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """A model that drafts for itself, in another directory: every proposal is right."""
    twin = tmp_path_factory.mktemp("twin") / "twin"
    shutil.copytree(models["target"], twin)
    return load(models["target"], draft=twin)


@pytest.fixture(params=["paired", "sure"])
def decoder(request: pytest.FixtureRequest) -> Decoder:
    model: LoadedModel = request.getfixturevalue(request.param)
    return decoder_of(model)


@pytest.mark.parametrize("draft_tokens", [1, 3, 8])
@pytest.mark.parametrize("prompt", [(5,), (9, 80, 31, 7), tuple(range(4, 300))])
def test_speculation_does_not_change_a_greedy_answer(
    decoder: Decoder, prompt: tuple[int, ...], draft_tokens: int
) -> None:
    drafted = msgspec.structs.replace(DRAFTED, draft_tokens=draft_tokens)
    assert one(decoder, prompt, drafted).tokens == one(decoder, prompt).tokens


def test_speculation_does_not_change_a_seeded_answer(decoder: Decoder) -> None:
    seeded = Decoding(max_tokens=24, temperature=0.8, seed=5, frequency_penalty=0.5)
    drafted = msgspec.structs.replace(seeded, use_draft=True)
    assert one(decoder, (9, 80, 31), drafted).tokens == one(decoder, (9, 80, 31), seeded).tokens


def test_every_proposal_is_counted_and_the_right_ones_are_marked(sure: LoadedModel) -> None:
    answer = one(decoder_of(sure), (9, 80, 31), DRAFTED)
    assert len(answer.tokens) == 16
    # Rounds of four proposals and one token of the model's own; for the last token none is proposed.
    assert [event.drafted for event in answer.drawn] == ([True] * 4 + [False]) * 3 + [False]
    assert [event.proposed for event in answer.drawn if event.proposed] == [4, 4, 4]


def test_a_poor_draft_model_proposes_and_is_seldom_right(paired: LoadedModel) -> None:
    answer = one(decoder_of(paired), (9, 80, 31), DRAFTED)
    accepted = sum(event.drafted for event in answer.drawn)
    proposed = sum(event.proposed for event in answer.drawn)
    assert accepted < proposed / 2
    assert proposed >= 16


def test_a_quantised_cache_and_a_draft_model_go_together(sure: LoadedModel) -> None:
    how = msgspec.structs.replace(GREEDY, kv_bits=8)
    drafted = msgspec.structs.replace(how, use_draft=True)
    decoder = decoder_of(sure)
    assert one(decoder, (9, 80, 31), drafted).tokens == one(decoder, (9, 80, 31), how).tokens


def test_the_batch_goes_on_beside_a_sequence_of_its_own(sure: LoadedModel) -> None:
    decoder = decoder_of(sure)
    alone = one(decoder, (5, 6, 7)).tokens
    decoder.insert([asked(1, (5, 6, 7)), asked(2, tuple(range(4, 200)), DRAFTED)])
    seen: list[int] = []
    for _ in range(18):
        seen += [event.sequence for event in decoder.step(LIMITS)]
    assert seen.count(1) > 10
    assert seen.count(2) > 10
    decoder.remove([1, 2])
    assert one(decoder, (5, 6, 7)).tokens == alone


def test_a_draft_model_of_other_tokens_is_refused(
    load: Load, models: dict[str, Path], tmp_path: Path
) -> None:
    other = random_llama(tmp_path / "other")
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    one_text, two_text = [text for text in vocabulary if len(text) == 1][:2]
    vocabulary[one_text], vocabulary[two_text] = vocabulary[two_text], vocabulary[one_text]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(InputError, match="another vocabulary") as caught:
        load(models["target"], draft=other)
    assert "same tokenizer" in caught.value.mend


def test_a_model_does_not_draft_for_itself(load: Load, models: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="cannot draft for itself"):
        load(models["target"], draft=models["target"])
