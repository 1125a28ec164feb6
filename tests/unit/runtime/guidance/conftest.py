from __future__ import annotations

from pathlib import Path

import pytest
from tests.factories.tiny_model import ModelShape, build_tiny_model

from tokenweir.runtime.guidance.masks import GuideCompiler
from tokenweir.runtime.guidance.vocabulary import Vocabulary, file_vocabulary, piece_vocabulary

WIDTH = 410


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = (
        'the weir measures {"a": 1, "b": [1, 2, true, null]} of the river',
        'a "river" flows: {"x":{"y":1}}',
    )
    shape = ModelShape(vocabulary=400, hidden=64, layers=1, heads=2, kv_heads=1, feed_forward=64)
    return build_tiny_model(tmp_path_factory.mktemp("guided"), texts, shape=shape) / "tokenizer.json"


@pytest.fixture(scope="session")
def vocabulary(tokenizer_file: Path) -> Vocabulary:
    return file_vocabulary(tokenizer_file, width=WIDTH, ends=[0])


@pytest.fixture(scope="session")
def byte_vocabulary() -> Vocabulary:
    pieces = [b"<|end|>", b"<|user|>", *(bytes([one]) for one in range(256)), b"true", b'{"', b'":']
    return piece_vocabulary(pieces, special=[0, 1], ends=[0])


@pytest.fixture
def compiler(vocabulary: Vocabulary) -> GuideCompiler:
    return GuideCompiler(vocabulary)
