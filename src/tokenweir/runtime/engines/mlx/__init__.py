"""Language models with MLX: loading, continuous batching, speculation, kept prompts, embeddings.

Only the runtime's child process imports this package.
"""

from __future__ import annotations

from tokenweir.ports.inference import InferenceEngine
from tokenweir.runtime.engines.mlx.engine import MlxEngine
from tokenweir.runtime.engines.registry import EngineOptions


def create(options: EngineOptions) -> InferenceEngine:
    """Return the engine. Raises ConfigError for options it does not have."""
    return MlxEngine(options)
