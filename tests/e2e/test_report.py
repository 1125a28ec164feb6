from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
from tests.e2e.browser import Page, browser
from tests.factories.runs import RunShape, make_run

from tokenweir.bench.report import render
from tokenweir.core.requests import Json

SLO: dict[str, Json] = {"slo": {"ttft": 60_000_000, "tpot": 25_000_000}}
TITLES = "[...document.querySelectorAll('figcaption')].map(node => node.textContent)"
SHAPES = {
    "plain": RunShape(loads=("poisson=40/s",), measurement=dict(SLO)),
    "sweep": RunShape(loads=("concurrency=1", "concurrency=8", "concurrency=64"), measurement=dict(SLO)),
    "bad": RunShape(failures=0.2, attributed=False, client_bound=True, status="cancelled"),
    "lost": RunShape(failures=1.0),
    "bursts": RunShape(bursts=0.5),
}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("profile"), "--window-size=1280,900") as opened:
        yield opened


def report(tmp_path: Path, shape: RunShape, n: int = 200) -> Path:
    make_run(tmp_path / "run", n=n, shape=shape)
    return render(tmp_path / "run")


def number(value: object) -> int:
    assert isinstance(value, int)
    return value


@pytest.mark.parametrize("name", ["plain", "sweep", "bad", "bursts"])
def test_draws_every_chart_without_a_complaint_or_a_request(page: Page, tmp_path: Path, name: str) -> None:
    page.problems.clear()
    page.requested.clear()
    path = report(tmp_path, SHAPES[name])
    page.open(path)

    assert page.run("document.documentElement.dataset.drawn") == "yes"
    assert page.problems == []
    assert page.requested == [path.as_uri()]
    titles = cast("list[str]", page.run(TITLES))
    wanted = ["Time to first token", "Inter-token latency", "Time per output token", "End-to-end latency"]
    wanted += ["Time to first token over time", "Output throughput over time", "Requests, one by one"]
    wanted += ["Throughput and interactivity", "Time to first token against load"] if name == "sweep" else []
    for title in wanted:
        assert any(text.endswith(title) for text in titles), title
    assert page.run(
        "document.querySelectorAll('figure').length === document.querySelectorAll('.plot > svg').length"
    )
    assert page.run("/NaN|undefined|Infinity/.test(document.getElementById('main').innerHTML)") is False
    units = "[...document.querySelectorAll('.readout')].map((each) => each.textContent)"
    told = cast("list[str]", page.run(units))
    for unit in ("in ms", "in tokens/s", "in requests/s", "the gap in ms, log scale"):
        assert any(text.endswith(unit) for text in told), unit


CROSSED = """
[...document.querySelectorAll('.plot > svg')].flatMap(root => {
  const points = [...root.querySelectorAll('path.line')].flatMap(curve => {
    const length = curve.getTotalLength();
    return Array.from({ length: 500 }, (_, place) => curve.getPointAtLength((length * place) / 499));
  });
  const inside = (box, point) =>
    point.x > box.x && point.x < box.x + box.width && point.y > box.y && point.y < box.y + box.height;
  return [...root.querySelectorAll('text.marked')]
    .filter(text => points.some(point => inside(text.getBBox(), point)))
    .map(text => text.textContent);
})
"""


@pytest.mark.parametrize("name", ["plain", "sweep"])
def test_no_curve_crosses_a_label(page: Page, tmp_path: Path, name: str) -> None:
    page.open(report(tmp_path, SHAPES[name]))
    assert number(page.run("document.querySelectorAll('text.marked').length")) > 1
    assert page.run(CROSSED) == []


def test_every_chart_opens_its_table_and_every_table_sorts(page: Page, tmp_path: Path) -> None:
    page.open(report(tmp_path, SHAPES["plain"]))

    page.run("document.querySelectorAll('figure details').forEach(node => { node.open = true; })")
    page.run("new Promise(resolve => requestAnimationFrame(() => requestAnimationFrame(resolve)))")
    figures = number(page.run("document.querySelectorAll('figure').length"))
    tables = "[...document.querySelectorAll('figure table')]"
    assert number(page.run(f"{tables}.length")) == figures
    assert page.run(f"{tables}.every(table => table.tBodies[0].rows.length > 1)") is True
    page.run("document.querySelectorAll('#timeline table th button')")
    sort = (
        "(() => { const table = document.querySelector('section.load > .scroll table');"
        " const head = table.tHead.rows[0].cells[2]; head.querySelector('button').click();"
        " return [head.getAttribute('aria-sort'), [...table.tBodies[0].rows].map(row =>"
        " Number(row.cells[2].textContent.replaceAll(',', '')))]; })()"
    )
    said, values = cast("tuple[str, list[float]]", page.run(sort))
    assert said == "ascending"
    assert values == sorted(values)


def test_a_chart_is_read_by_keyboard_and_by_pointer(page: Page, tmp_path: Path) -> None:
    page.open(report(tmp_path, SHAPES["plain"]))
    readout = "document.querySelector('#\\\\30 -cdf-ttft .readout').textContent"
    plot = "document.querySelector('#\\\\30 -cdf-ttft .plot')"

    page.run(f"{plot}.focus()")
    page.press("Home")
    assert "p0" in str(page.run(readout))
    page.press("ArrowRight")
    assert "p1" in str(page.run(readout))
    assert "ms" in str(page.run(readout))
    page.press("Escape")
    assert "ms" not in str(page.run(readout))

    page.run(f"{plot}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
    left, top, width, height = cast(
        "list[float]",
        page.run(
            f"(() => {{ const b = {plot}.getBoundingClientRect(); return [b.x, b.y, b.width, b.height]; }})()"
        ),
    )
    page.move(left + width / 2, top + height / 2)
    assert "ms" in str(page.run(readout))


def test_the_theme_follows_the_system_until_it_is_chosen(page: Page, tmp_path: Path) -> None:
    page.open(report(tmp_path, SHAPES["plain"]))
    colour = "getComputedStyle(document.body).backgroundColor"
    seen: dict[str, object] = {}
    for scheme in ("light", "dark"):
        page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        seen[scheme] = page.run(colour)
    assert seen["light"] != seen["dark"]
    page.run("document.getElementById('theme').click()")
    assert page.run(colour) == seen["light"]
    page.run("document.getElementById('theme').click()")
    assert page.run(colour) == seen["dark"]
    page.run("document.getElementById('theme').click()")
    page.call("Emulation.setEmulatedMedia", features=[])


def test_a_load_point_is_chosen_and_linked_to(page: Page, tmp_path: Path) -> None:
    path = report(tmp_path, SHAPES["sweep"])
    page.open(path)
    shown = "[...document.querySelectorAll('section.load')].filter(node => !node.hidden).map(node => node.id)"

    assert page.run(shown) == ["load-0"]
    page.run("document.querySelectorAll('#picker input')[2].click()")
    assert page.run(shown) == ["load-2"]
    assert page.run("location.hash") == "#load-2"
    assert page.run("document.querySelectorAll('#load-2 figure').length > 8") is True


def test_nothing_overflows_a_narrow_screen(page: Page, tmp_path: Path) -> None:
    page.call("Emulation.setDeviceMetricsOverride", width=360, height=740, deviceScaleFactor=2, mobile=True)
    page.open(report(tmp_path, SHAPES["sweep"]))
    try:
        assert page.run("document.documentElement.scrollWidth <= 360") is True
    finally:
        page.call("Emulation.clearDeviceMetricsOverride")


def test_text_of_a_run_is_never_markup(page: Page, tmp_path: Path) -> None:
    page.problems.clear()
    nasty = "</script><script>window.hurt = 1</script><img src=x onerror='window.hurt=1'>\u2028&amp;"
    path = report(tmp_path, RunShape(labels={nasty: nasty}, corpus=nasty, loads=("concurrency=8",)))
    page.open(path)

    assert page.run("window.hurt === undefined") is True
    assert page.run("document.images.length") == 0
    heading = str(page.run("document.querySelector('header').textContent"))
    assert nasty in heading
    assert page.problems == []


def test_every_control_and_region_has_a_name(page: Page, tmp_path: Path) -> None:
    page.open(report(tmp_path, SHAPES["sweep"]))
    page.call("Accessibility.enable")
    nodes = cast("list[dict[str, object]]", page.call("Accessibility.getFullAXTree")["nodes"])
    named = {"button", "link", "radio", "region", "table", "heading"}
    for node in nodes:
        role = cast("dict[str, object]", node.get("role", {})).get("value")
        if node.get("ignored") or role not in named:
            continue
        assert cast("dict[str, object]", node.get("name", {})).get("value"), node
    named_by = "document.getElementById(plot.getAttribute('aria-labelledby')).textContent !== ''"
    assert page.run(f"[...document.querySelectorAll('.plot')].every(plot => {named_by})") is True


def test_a_run_without_one_completed_request_still_has_a_page(page: Page, tmp_path: Path) -> None:
    page.problems.clear()
    page.open(report(tmp_path, SHAPES["lost"]))
    assert page.run("document.documentElement.dataset.drawn") == "yes"
    assert page.problems == []
    assert "overloaded" in str(page.run("document.body.textContent"))
