from __future__ import annotations

import base64
import hashlib
import json
import re
from html import escape
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.factories.runs import RunShape, make_run

from tokenweir.bench.report import render
from tokenweir.bench.report.page import embedded
from tokenweir.core.errors import RecordError
from tokenweir.core.metrics.registry import METRICS


def rendered(path: Path, shape: RunShape, n: int = 200) -> str:
    make_run(path, n=n, shape=shape)
    return render(path).read_text(encoding="utf-8")


def test_says_every_metric_with_its_definition_unit_and_n(tmp_path: Path) -> None:
    run = make_run(tmp_path, n=200)
    text = render(tmp_path).read_text(encoding="utf-8")
    for tag, metric in run.loads[0].summary.metrics.items():
        assert f"<code>{tag}</code>" in text
        assert f'id="def-{tag}"' in text
        assert f'<a href="#def-{tag}" title="{escape(metric.definition)}">{METRICS[tag].title}</a>' in text
        assert f"<td>{metric.unit}</td><td class=num>{metric.n:,}</td>" in text


def test_says_what_speaks_against_the_numbers(tmp_path: Path) -> None:
    shape = RunShape(attributed=False, client_bound=True, status="cancelled", failures=0.3)
    run = make_run(tmp_path, n=200, shape=shape)
    text = render(tmp_path).read_text(encoding="utf-8")
    for words in (
        '<li class="badge warn">cancelled</li>',
        '<li class="badge warn">client-bound</li>',
        '<li class="badge warn">unattributed</li>',
        *map(escape, run.loads[0].summary.verdict.reasons),
        "backend_commit: the server does not say",
        "<dt>overloaded</dt>",
    ):
        assert words in text
    assert '<li class="badge good">attributed</li>' in rendered(tmp_path / "fine", RunShape())


def test_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    text = rendered(tmp_path, RunShape(loads=("concurrency=1", "concurrency=8")))
    # The endpoint's own address is text, and the name of SVG's vocabulary is no address.
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:|//)|@import|url\(""", text)
    for kind in ("script", "style"):
        (body,) = re.findall(rf"<{kind}>(.*?)</{kind}>", text, flags=re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in text


def test_stays_small_however_many_requests_and_loads(tmp_path: Path) -> None:
    loads = tuple(f"concurrency={2**k}" for k in range(12))
    assert len(rendered(tmp_path, RunShape(loads=loads, failures=0.05), n=2000)) < 2_000_000


@given(st.text())
def test_embedded_json_reads_back_and_cannot_end_its_element(text: str) -> None:
    safe = embedded(json.dumps({"text": text + "</script><!--\u2028"}, ensure_ascii=False))
    assert "<" not in safe
    assert "\u2028" not in safe
    assert json.loads(safe)["text"] == text + "</script><!--\u2028"


def test_replaces_an_older_report_and_leaves_nothing_else(tmp_path: Path) -> None:
    make_run(tmp_path)
    (tmp_path / "report.html").write_text("old")
    before = {path.name for path in tmp_path.iterdir()}
    assert render(tmp_path).read_text(encoding="utf-8") != "old"
    assert {path.name for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("name", ["requests.parquet", "series.parquet"])
def test_a_missing_or_damaged_table_is_one_line(tmp_path: Path, name: str) -> None:
    make_run(tmp_path)
    (tmp_path / name).write_bytes(b"PAR1 not")
    with pytest.raises(RecordError, match="damaged or foreign"):
        render(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(RecordError, match="missing"):
        render(tmp_path)
