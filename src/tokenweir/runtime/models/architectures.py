"""Which model architectures the installed MLX packages can run, learnt from their file names without importing them."""

from __future__ import annotations

import ast
import functools
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Final

ENCODERS: Final = frozenset(
    {"bert", "roberta", "xlm-roberta", "distilbert", "mpnet", "nomic_bert", "modernbert", "albert", "electra"}
)
"""Model types that turn text into vectors and write none."""

SIM: Final = "sim"
"""The simulating engine's own."""

_PACKAGES: Final = ("mlx_lm", "mlx_vlm")


def is_supported(model_type: str) -> bool | None:
    """Return whether an installed package has the architecture; ``None`` where none is installed to ask."""
    known = [_known(package) for package in _PACKAGES]
    if not any(known):
        return None
    return any(model_type in names for names in known) or model_type in ENCODERS


@functools.cache
def _known(package: str) -> frozenset[str]:
    """Return the model types that ``package`` runs: its module names, and the names it maps to them."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return frozenset()
    home = Path(spec.submodule_search_locations[0])
    modules = {
        entry.stem
        for entry in (home / "models").iterdir()
        if (entry.is_dir() or entry.suffix == ".py") and not entry.name.startswith("_")
    }
    mapped = {name for name, module in _remapping(home / "utils.py").items() if module in modules}
    return frozenset(modules | mapped)


def _remapping(source: Path) -> Mapping[str, str]:
    """Return the literal ``MODEL_REMAPPING`` of a package's source; empty where it has none."""
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and any(
            isinstance(target, ast.Name) and target.id == "MODEL_REMAPPING" for target in node.targets
        ):
            return ast.literal_eval(node.value)
    return {}
