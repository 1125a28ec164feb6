from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.factories.doors import Exchange, ask, make_app

from tokenweir.asgi import problems
from tokenweir.core import errors
from tokenweir.core.errors import WeirError
from tokenweir.runtime.health import DeviceStatus
from tokenweir.runtime.http.fakes import FakeServing
from tokenweir.runtime.http.routes import ROUTES
from tokenweir.runtime.normalise.vocabulary import LOADING, REQUESTS
from tokenweir.wire.v1.service import METHODS

PAGE = (Path(__file__).parents[2] / "docs" / "runtime.md").read_text(encoding="utf-8")
WORDS = set(re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL)))
SOURCES = [
    *(Path(__file__).parents[2] / "src" / "tokenweir" / "runtime" / "normalise").glob("*.py"),
    Path(__file__).parents[2] / "src" / "tokenweir" / "runtime" / "images.py",
]


@pytest.mark.parametrize("path", ROUTES)
def test_every_route_is_documented(path: str) -> None:
    assert f"`{ROUTES[path].method} {path}`" in PAGE


@pytest.mark.parametrize("name", [*REQUESTS.options, *REQUESTS.harmless, *REQUESTS.foreign])
def test_every_option_is_documented(name: str) -> None:
    assert name in WORDS


def test_every_other_name_is_that_of_the_code() -> None:
    table = PAGE.partition("## Requests")[2].partition("\n\n`false`")[0]
    rows = re.findall(r"^\| (`[^|]+) \| (`[^|]+`) \| ", table, flags=re.MULTILINE)
    assert rows
    for option, others in rows:
        for other in re.findall(r"`(\w+)`", others):
            assert any(other in REQUESTS.spellings(name) for name in re.findall(r"`(\w+)`", option)), other


def test_every_name_of_loading_is_documented() -> None:
    sentence = PAGE.partition("Loading takes")[2].partition("\n\n")[0]
    named = set(re.findall(r"`(\w+)`", sentence))
    assert named == {each for name, option in LOADING.options.items() for each in (name, *option.others)}


def test_every_metric_is_documented_with_its_labels() -> None:
    serving = FakeServing()
    state = serving.state
    serving.state = type(state)(
        lifecycle=state.lifecycle,
        breaker=state.breaker,
        scheduler=state.scheduler,
        devices=(
            DeviceStatus(
                name="text",
                engine="sim",
                engine_version="1",
                lifecycle=state.lifecycle,
                breaker=state.breaker,
            ),
        ),
    )
    text = ask(make_app(serving), Exchange("GET", "/metrics")).text
    rows = dict(re.findall(r"^\| `(weir_runtime_\w+)` \|([^|]*)\|", PAGE, flags=re.MULTILINE))
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert rows.keys() == families.keys()
    for name, family in families.items():
        for sample in family.samples:
            assert set(re.findall(r"`(\w+)`", rows[name])) == sample.labels.keys() - {"le"}, name


def door_errors() -> list[type[WeirError]]:
    found = [one for one in vars(problems).values() if isinstance(one, type)]
    ours = [one for one in found if issubclass(one, WeirError) and one.__module__ == problems.__name__]
    return [one for one in ours if one is not problems.FailedError]


def codes() -> Iterator[tuple[int, str]]:
    served = (
        errors.GuidanceError,
        errors.EngineError,
        errors.EngineRestartedError,
        errors.UnavailableError,
        errors.DrainingError,
        errors.TooManyStreamsError,
        errors.ModelNotLoadedError,
        errors.DeadlineError,
        errors.NoMemoryError,
        errors.InputError,
        WeirError,
    )
    for kind in served:
        yield kind.http_status, kind.code
    for kind in door_errors():
        yield kind.http_status, kind.code
    for source in SOURCES:
        for reason in re.findall(r'reason="(\w+)"', source.read_text(encoding="utf-8")):
            yield 400, reason


@pytest.mark.parametrize(("status", "code"), sorted(set(codes())))
def test_every_error_is_documented_with_its_status(status: int, code: str) -> None:
    rows = re.findall(r"^\| (\d{3}) \| ([^|]+) \|", PAGE, flags=re.MULTILINE)
    assert any(int(row) == status and f"`{code}`" in told for row, told in rows)


@pytest.mark.parametrize("name", [method.name for method in METHODS])
def test_every_method_is_documented(name: str) -> None:
    assert name in WORDS
