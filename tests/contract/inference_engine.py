"""What every inference engine must do. An engine's test class derives from :class:`InferenceEngineContract`.

Its ``subject`` says what to load; a test of something that the model cannot do is skipped by its capabilities.
"""

from __future__ import annotations

from tests.contract.inference_engine_decoding import DecodingContract
from tests.contract.inference_engine_drawing import DrawingContract
from tests.contract.inference_engine_model import ModelContract
from tests.contract.inference_engine_run import Subject

__all__ = ["InferenceEngineContract", "Subject"]


class InferenceEngineContract(ModelContract, DecodingContract, DrawingContract):
    """The contract. One test, one promise of :mod:`tokenweir.ports.inference`."""
