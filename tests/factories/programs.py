"""Programs of the machine that tests run."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

import pytest

from tokenweir.config import read_environment


def program(*names: str, beside: Sequence[str] = ()) -> str:
    """Return the path of the first of ``names`` on the search path, or in the directories ``beside`` it.

    Without any the test is skipped, and in CI it fails.
    """
    places = ":".join((read_environment().get("PATH", ""), *beside))
    found = next((path for name in names if (path := shutil.which(name, path=places))), None)
    if found is not None:
        return found
    if read_environment().get("CI") == "true":
        pytest.fail(f"{names[0]} is not installed, and CI must have it", pytrace=False)
    pytest.skip(f"{names[0]} is not installed")
