from __future__ import annotations

import importlib.util

import pytest
from tests.contract.inference_engine import InferenceEngineContract, Subject
from tests.factories.language_models import DRAFT, TOOL_TEMPLATE, random_llama

from tokenweir.ports.inference import LoadSpec
from tokenweir.runtime.engines import registry
from tokenweir.runtime.engines.registry import EngineOptions
from tokenweir.runtime.models.manifest import read_card


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    home = tmp_path_factory.mktemp("models")
    path = random_llama(home / "target", template=TOOL_TEMPLATE, scale=2.0)
    draft = random_llama(home / "draft", shape=DRAFT, seed=4)
    return Subject(
        engine=registry.create("mlx", EngineOptions(prefix_cache_bytes=8 << 20)),
        spec=LoadSpec(name="m", path=str(path), draft=str(draft)),
        card=read_card(path, "m", draft=draft),
    )


@pytest.mark.skipif(
    importlib.util.find_spec("mlx_lm") is None, reason="mlx-lm is not installed: needs the extra 'runtime'"
)
class TestMlx(InferenceEngineContract):
    @pytest.fixture
    def subject(self, tiny: Subject) -> Subject:
        return tiny
