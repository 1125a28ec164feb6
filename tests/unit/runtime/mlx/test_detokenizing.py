from __future__ import annotations

import json
from typing import Any

import pytest

pytest.importorskip("mlx_lm", reason="mlx-lm is not installed: needs the extra 'runtime'")

from hypothesis import given
from hypothesis import strategies as st
from tests.factories.language_models import TEXTS
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from tokenweir.runtime.engines.mlx.detokenizing import (
    BytesDetokenizer,
    WindowDetokenizer,
    byte_table,
    detokenizers,
)

NONE: frozenset[str] = frozenset()


def add(tokenizer: Any, *tokens: AddedToken) -> None:  # noqa: ANN401 - its stubs do not type these methods
    tokenizer.add_tokens(list(tokens))


def number(text: str) -> int:
    found = LEVEL.token_to_id(text)
    assert found is not None
    return found


def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|end|>", "<think>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    add(tokenizer, AddedToken("<tool>", special=False))
    return tokenizer


def sentence_piece() -> Tokenizer:
    """The layout of Llama 2: spaces as U+2581, bytes as <0x..> where no token writes a character."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
    pieces += sorted(
        {character for text in TEXTS for character in text if character.isascii() and character != " "}
    )
    vocabulary = {piece: at for at, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    add(tokenizer, AddedToken("<s>", special=True), AddedToken("</s>", special=True))
    return tokenizer


def word_piece() -> Tokenizer:
    words = ["[UNK]", "the", "weir", "hold", "##s", "water", "!", "##ing", "back"]
    tokenizer = Tokenizer(models.WordPiece({word: at for at, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


LEVEL, PIECE, WORD = byte_level(), sentence_piece(), word_piece()
KINDS = {"byte_level": LEVEL, "sentence_piece": PIECE}


def told(tokenizer: Tokenizer, tokens: list[int], shown: frozenset[str] = NONE) -> list[str]:
    detokenizer = detokenizers(tokenizer, json.loads(tokenizer.to_str()), shown)()
    return [*map(detokenizer.add, tokens), detokenizer.finish()]


@pytest.mark.parametrize("kind", KINDS)
@given(text=st.text(max_size=40))
def test_text_comes_back_whole(kind: str, text: str) -> None:
    tokenizer = KINDS[kind]
    text = text.replace("▁", "")
    assert "".join(told(tokenizer, tokenizer.encode(text, add_special_tokens=False).ids)) == text


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_any_tokens_give_what_the_tokenizer_says_they_give(kind: str, data: st.DataObject) -> None:
    tokenizer = KINDS[kind]
    size = tokenizer.get_vocab_size()
    tokens = data.draw(st.lists(st.integers(3, size - 1), max_size=30))
    pieces = told(tokenizer, tokens)
    whole = tokenizer.decode(tokens, skip_special_tokens=True)
    if "�" not in whole:
        assert "".join(pieces) == whole
    elif kind == "byte_level":
        # How many replacements a broken character takes is a matter of taste. SentencePiece's decoder replaces
        # every byte of a run that has one, the good ones too.
        assert "".join(pieces).replace("�", "") == whole.replace("�", "")


def test_a_character_appears_with_its_last_byte() -> None:
    tokens = [number(character) for character in "ðŁĮĬ"]
    assert told(LEVEL, tokens) == ["", "", "", "🌊", ""]
    assert told(LEVEL, tokens[:2]) == ["", "", "�"]


def test_special_tokens_have_no_text_unless_they_are_fences() -> None:
    tokens = [number("<think>"), number("<|end|>"), number("<tool>")]
    assert told(LEVEL, tokens) == ["", "", "<tool>", ""]
    assert told(LEVEL, tokens, frozenset({"<think>"})) == ["<think>", "", "<tool>", ""]


def test_tokens_beyond_the_vocabulary_have_no_text() -> None:
    table = byte_table(LEVEL, json.loads(LEVEL.to_str()), NONE)
    assert table is not None
    assert BytesDetokenizer(table).add(len(table.pieces) + 5) == ""


def test_only_the_first_space_of_a_text_is_not_part_of_it() -> None:
    tokens = PIECE.encode("a  b", add_special_tokens=False).ids
    assert "".join(told(PIECE, tokens)) == "a  b"


def test_words_are_joined_as_their_tokenizer_joins_them() -> None:
    tokens = WORD.encode("the weir holds holding water back ! the weir holds the water back the weir").ids
    layout = json.loads(WORD.to_str())
    assert byte_table(WORD, layout, NONE) is None
    assert isinstance(detokenizers(WORD, layout, NONE)(), WindowDetokenizer)
    assert "".join(told(WORD, tokens)) == WORD.decode(tokens)
