from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import pytest
from tests.factories.language_models import DRAFT, TOOL_TEMPLATE, random_llama

from tokenweir.ports.inference import InferenceEngine, LoadedModel, LoadSpec
from tokenweir.runtime.engines import registry
from tokenweir.runtime.engines.registry import EngineOptions
from tokenweir.runtime.models.manifest import read_card

MISSING = importlib.util.find_spec("mlx_lm") is None

Load = Callable[..., LoadedModel]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if MISSING and here in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="mlx-lm is not installed: needs the extra 'runtime'"))


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A target, a model that drafts for it, one with other tokens, one that calls tools."""
    home = tmp_path_factory.mktemp("models")
    return {
        "target": random_llama(home / "target"),
        "draft": random_llama(home / "draft", shape=DRAFT, seed=4),
        "tools": random_llama(home / "tools", template=TOOL_TEMPLATE),
    }


@pytest.fixture(scope="module")
def engine() -> InferenceEngine:
    return registry.create("mlx", EngineOptions(prefix_cache_bytes=64 << 20))


@pytest.fixture(scope="module")
def load(engine: InferenceEngine) -> Iterator[Load]:
    """Load models by path; they are closed in the end."""
    loaded: list[LoadedModel] = []

    def load(
        path: Path, *, weight_bits: Literal[4, 8] | None = None, draft: Path | None = None
    ) -> LoadedModel:
        card = read_card(path, path.name, weight_bits=weight_bits, draft=draft)
        spec = LoadSpec(
            name=path.name, path=str(path), weight_bits=weight_bits, draft=str(draft) if draft else None
        )
        loaded.append(engine.load(spec, card))
        return loaded[-1]

    yield load
    for model in loaded:
        model.close()


@pytest.fixture(scope="module")
def target(load: Load, models: dict[str, Path]) -> LoadedModel:
    return load(models["target"])
