from __future__ import annotations

import io

from rich.console import Console

from tokenweir.demo.telling import Teller


def told(width: int = 60) -> tuple[Teller, io.StringIO]:
    out = io.StringIO()
    return Teller(Console(file=out, width=width, highlight=False), steps=2), out


def test_steps_are_numbered() -> None:
    teller, out = told()
    teller.step("One", "first")
    teller.step("Two", "second")
    assert "1/2  One" in out.getvalue()
    assert "2/2  Two" in out.getvalue()


def test_long_paths_and_commands_stay_on_one_line() -> None:
    teller, out = told(width=40)
    line = "weir compare " + "/a/very/long/path" * 8
    teller.command(line)
    teller.note(line)
    teller.text(f"{line}\nsecond")
    assert out.getvalue().count(line) == 3


def test_markup_in_what_a_server_says_is_shown_as_it_is() -> None:
    teller, out = told()
    teller.note("[bold]not markup[/bold]")
    assert "[bold]not markup[/bold]" in out.getvalue()


def test_plain_output_has_no_escape_codes() -> None:
    teller, out = told()
    with teller.busy("measuring"):
        teller.table(("load", "n"), [("concurrency=1", "12")])
    assert "\x1b" not in out.getvalue()
    assert "measuring" in out.getvalue()


def test_a_wide_table_is_not_cut() -> None:
    teller, out = told(width=30)
    teller.table(("load", "n"), [("concurrency=1,2,3,4,5,6,7,8,9,10", "1234567890")])
    assert "1234567890" in out.getvalue()
