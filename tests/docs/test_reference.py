from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.docs import reference

from tokenweir.app import Settings
from tokenweir.cli.main import COMMANDS
from tokenweir.config import known_keys
from tokenweir.core.metrics.registry import METRICS

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)#\s]*)(#[^)\s]*)?\)")


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("path", list(reference.pages()), ids=lambda one: one.name)
def test_generated_parts_are_those_of_the_code(path: Path) -> None:
    # To mend: make docs.
    text = path.read_text(encoding="utf-8")
    assert reference.render(text) == text


def test_every_command_is_documented() -> None:
    text = page("commands.md")
    for name in COMMANDS:
        assert f"## `weir {name}`" in text


def test_every_setting_is_documented() -> None:
    text = page("configuration.md")
    for key in known_keys(Settings):
        assert f"| `{key.rpartition('.')[2]}` |" in text, key


def test_every_metric_is_documented_as_it_is_computed() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+\| [^|]+) \|", page("formats.md"), flags=re.MULTILINE))
    for tag, metric in METRICS.items():
        assert rows[tag] == f"{metric.unit} | {metric.direction}", tag


@pytest.mark.parametrize("path", PAGES, ids=lambda one: str(one.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    for target, anchor in LINK.findall(path.read_text(encoding="utf-8")):
        file = (path.parent / target) if target else path
        assert file.exists(), target
        if anchor and file.suffix == ".md":
            headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor[1:] in slugs, anchor


def test_every_page_is_reached_from_the_index() -> None:
    index = page("README.md")
    for path in (ROOT / "docs").glob("*.md"):
        assert path.name == "README.md" or f"({path.name})" in index, path.name
    decisions = (ROOT / "docs" / "adr" / "README.md").read_text(encoding="utf-8")
    for path in (ROOT / "docs" / "adr").glob("0*.md"):
        assert f"({path.name})" in decisions, path.name
