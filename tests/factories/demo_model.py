"""The recipe of ``examples/demo-model``: a package that lies beside the model it makes, not on any path."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[2] / "examples" / "demo-model"


def recipe(module: str) -> Any:  # noqa: ANN401 - scripts without stubs
    """Return a module of the recipe."""
    if "recipe" not in sys.modules:
        source = FOLDER / "recipe"
        spec = importlib.util.spec_from_file_location(
            "recipe", source / "__init__.py", submodule_search_locations=[str(source)]
        )
        if spec is None or spec.loader is None:
            raise FileNotFoundError(source)
        package = importlib.util.module_from_spec(spec)
        sys.modules["recipe"] = package
        spec.loader.exec_module(package)
    return importlib.import_module(f"recipe.{module}")
