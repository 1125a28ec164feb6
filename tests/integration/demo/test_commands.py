from __future__ import annotations

from pathlib import Path

import pytest

from tokenweir.core.errors import ResourceError
from tokenweir.demo.commands import Commands


def test_a_command_runs_and_its_output_is_kept(tmp_path: Path) -> None:
    outcome = Commands(tmp_path).run("version", "--version")
    assert outcome.code == 0
    assert outcome.out.startswith("weir ")
    assert (tmp_path / "logs" / "version.out").read_text() == outcome.out


def test_a_failure_is_told_in_the_commands_own_words(tmp_path: Path) -> None:
    commands = Commands(tmp_path)
    assert "no such command" in commands.run("wrong", "bensh").complaint
    with pytest.raises(ResourceError, match="did you mean"):
        commands.must("wrong", "bensh")


def test_commands_are_shown_as_they_can_be_typed(tmp_path: Path) -> None:
    assert Commands(tmp_path).shown("bench", "a b") == "weir bench 'a b'"
