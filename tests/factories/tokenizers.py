"""Small real tokenizers of the three usual families, trained on the shipped prose."""

# The stubs of tokenizers leave some keyword arguments open.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from pathlib import Path
from typing import Literal

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from tokenweir.bench.corpora import shipped_prose

Family = Literal["bpe", "unigram", "wordpiece"]


def write_tokenizer(folder: Path, family: Family = "bpe") -> Path:
    """Train a tokenizer and return the ``tokenizer.json`` in ``folder``."""
    lines = shipped_prose().split("\n")
    match family:
        case "bpe":
            inner = Tokenizer(models.BPE())
            inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            inner.decoder = decoders.ByteLevel()
            trainer = trainers.BpeTrainer(
                vocab_size=1500, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
            )
        case "unigram":
            inner = Tokenizer(models.Unigram())
            inner.pre_tokenizer = pre_tokenizers.Metaspace()
            inner.decoder = decoders.Metaspace()
            trainer = trainers.UnigramTrainer(
                vocab_size=800, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False
            )
        case "wordpiece":
            inner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
            inner.normalizer = normalizers.BertNormalizer()
            inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
            inner.decoder = decoders.WordPiece()
            trainer = trainers.WordPieceTrainer(
                vocab_size=1500, special_tokens=["[UNK]"], show_progress=False
            )
    inner.train_from_iterator(lines, trainer)
    # A trap that real files hold: both must be undone by what reads them.
    inner.enable_truncation(max_length=64)
    inner.enable_padding(length=8)
    path = folder / "tokenizer.json"
    inner.save(str(path))
    return path
