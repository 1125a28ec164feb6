from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.factories.tokenizers import write_tokenizer

from tokenweir.backends.tokenizer_file import FileTokenizer
from tokenweir.bench.tokenizers import EstimateTokenizer, count_tokens, find_tokenizer
from tokenweir.core.errors import InputError
from tokenweir.ports.fakes import WordTokenizer

TEXT = "A weir is a low wall built across a river. " * 20


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_tokenizer(folder)
    return folder


def test_file_and_folder_give_the_same_exact_tokenizer(model: Path) -> None:
    path = model / "tokenizer.json"
    for hint in (model, path):
        found = find_tokenizer(str(hint), model_path="/nowhere")
        assert isinstance(found, FileTokenizer)
        assert found.exact
        assert found.hash == hashlib.sha256(path.read_bytes()).hexdigest()
        assert found.path == path


def test_padding_and_truncation_of_the_file_are_undone(model: Path) -> None:
    found = FileTokenizer(model / "tokenizer.json")
    ids = found.encode(TEXT)
    assert len(ids) > 64
    assert found.decode(ids) == TEXT
    assert count_tokens(found, [TEXT, "river", ""]).tolist() == [len(ids), len(found.encode("river")), 0]
    assert found.encode_batch([TEXT]) == [ids]
    assert found.decode_batch([ids]) == [TEXT]


def test_model_path_is_used_where_it_has_a_tokenizer(model: Path, tmp_path: Path) -> None:
    assert find_tokenizer(None, model_path=str(model)).exact
    assert not find_tokenizer(None, model_path=str(tmp_path)).exact
    assert not find_tokenizer(None).exact


def test_a_named_tokenizer_must_be_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no tokenizer\.json"):
        find_tokenizer(str(tmp_path))
    with pytest.raises(InputError, match="No such file"):
        find_tokenizer(str(tmp_path / "none.json"))
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(InputError, match=r"is no tokenizer\.json"):
        find_tokenizer(str(tmp_path / "bad.json"))


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_estimate_counts_four_bytes_and_gives_the_text_back(text: str) -> None:
    estimate = EstimateTokenizer()
    ids = estimate.encode(text)
    assert estimate.decode(ids) == text
    assert len(ids) == estimate.count(text) == -(-len(text.encode()) // 4)
    assert count_tokens(estimate, [text, text]).tolist() == [len(ids)] * 2
    assert (estimate.exact, estimate.hash) == (False, None)


def test_any_tokenizer_of_the_port_can_count() -> None:
    assert count_tokens(WordTokenizer(["a", "b"]), ["a b a", "b"]).tolist() == [3, 1]
