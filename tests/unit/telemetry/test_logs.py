from __future__ import annotations

import io
import json
import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenweir.telemetry import logs


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_elsewhere_than_on_a_terminal_lines_are_json() -> None:
    out = io.StringIO()
    logs.configure(stream=out)
    logs.get_logger("tokenweir.test").info("request", **{"gen_ai.request.model": "m", "n": 3})
    line = json.loads(out.getvalue())
    assert line["event"] == "request"
    assert (line["gen_ai.request.model"], line["n"]) == ("m", 3)
    assert (line["level"], line["logger"]) == ("info", "tokenweir.test")
    assert line["timestamp"].endswith("Z")


def test_on_a_terminal_lines_are_for_people() -> None:
    out = Terminal()
    logs.configure(stream=out)
    logs.get_logger("tokenweir.test").info("request", n=3)
    assert "request" in out.getvalue()
    assert not out.getvalue().startswith("{")


def test_lines_below_the_level_are_left_out() -> None:
    out = io.StringIO()
    logs.configure("warning", stream=out)
    log = logs.get_logger("tokenweir.test")
    log.info("quiet")
    log.warning("loud")
    assert [json.loads(line)["event"] for line in out.getvalue().splitlines()] == ["loud"]


def test_configuring_again_replaces_the_stream() -> None:
    first, second = io.StringIO(), io.StringIO()
    logs.configure(stream=first)
    logs.configure(stream=second)
    logs.get_logger("tokenweir.test").info("once")
    assert not first.getvalue()
    assert second.getvalue().count("\n") == 1


def test_libraries_and_tracebacks_are_lines_too() -> None:
    out = io.StringIO()
    logs.configure(stream=out)
    try:
        _ = 1 // len("")
    except ZeroDivisionError:
        logging.getLogger("some.library").exception("it %s", "broke")
    line = json.loads(out.getvalue())
    assert line["event"] == "it broke"
    assert "ZeroDivisionError" in line["exception"]


def test_a_file_gets_the_lines_while_it_is_open(tmp_path: Path) -> None:
    out = io.StringIO()
    logs.configure("error", stream=out)
    log = logs.get_logger("tokenweir.test")
    with logs.also_to_file(tmp_path / "run.log"):
        log.info("inside", api_key="hush")
    log.info("outside")
    lines = [json.loads(line) for line in (tmp_path / "run.log").read_text(encoding="utf-8").splitlines()]
    assert [line["event"] for line in lines] == ["inside"]
    assert lines[0]["api_key"] == logs.REDACTED
    assert not out.getvalue()


@pytest.mark.parametrize(
    ("field", "value", "shown"),
    [
        ("api_key", "abc", "[redacted]"),
        ("x-api-key", "abc", "[redacted]"),
        ("authorization", "Basic abc", "[redacted]"),
        ("password", "abc", "[redacted]"),
        ("note", "sent Bearer abc.def to it", "sent Bearer [redacted] to it"),
        ("url", "http://me:abc@host/x", "http://me:[redacted]@host/x"),
        ("note", "the key sk-abcdefghijklmnop0123 leaked", "the key [redacted] leaked"),
        (
            "headers",
            {"Authorization": "abc", "accept": "*/*"},
            {"Authorization": "[redacted]", "accept": "*/*"},
        ),
        ("all", [{"password": "abc"}], [{"password": "[redacted]"}]),
        ("input_tokens", 7, 7),
        ("key", 7, 7),
        ("url", "http://host:8000/x", "http://host:8000/x"),
    ],
)
def test_secrets_are_redacted(field: str, value: object, shown: object) -> None:
    assert logs.redact(None, "info", {field: value}) == {field: shown}


@given(
    st.dictionaries(
        st.sampled_from(["event", "n", "rate"]), st.one_of(st.integers(), st.floats(), st.booleans())
    )
)
def test_numbers_are_never_touched(event: dict[str, object]) -> None:
    assert logs.redact(None, "info", dict(event)) == event or any(one != one for one in event.values())  # noqa: PLR0124 - NaN
