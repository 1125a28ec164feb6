from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from tests.contract.inference_engine import InferenceEngineContract, Subject
from tests.factories.sim_models import card, directory

from tokenweir.ports.inference import LoadSpec
from tokenweir.runtime.engines.registry import EngineOptions
from tokenweir.runtime.engines.sim import SimEngine


class TestSim(InferenceEngineContract):
    @pytest.fixture
    def subject(self, tmp_path: Path) -> Subject:
        path = directory(tmp_path / "m", output_tokens="uniform:20..60", weights_bytes=1 << 20)
        known = msgspec.structs.replace(card(path), weights_bytes=1 << 20)
        return Subject(
            engine=SimEngine(EngineOptions(prefix_cache_bytes=1 << 20)),
            spec=LoadSpec(name="m", path=str(path), draft="another"),
            card=known,
        )
