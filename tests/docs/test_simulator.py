from __future__ import annotations

from pathlib import Path

from tokenweir.sim.faults import KINDS
from tokenweir.sim.routes import ROUTES
from tokenweir.sim.truth import Truth

PAGE = (Path(__file__).parents[2] / "docs" / "simulator.md").read_text(encoding="utf-8")


def test_every_route_is_documented() -> None:
    for method, path in ROUTES:
        assert f"`{method} {path}`" in PAGE or (f"`{method}`" in PAGE and f"`{path}`" in PAGE), path


def test_every_fault_is_documented() -> None:
    for kind in KINDS:
        assert f"| `{kind}` |" in PAGE, kind


def test_every_field_of_the_truth_is_documented() -> None:
    for field in (*Truth(0).summary(), "running", "waiting", "used_tokens", "cpu_s"):
        assert f"`{field}`" in PAGE, field
