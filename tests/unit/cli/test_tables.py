from __future__ import annotations

import io

import pytest
from rich.console import Console

from tokenweir.cli.tables import Column, draw

COLUMNS = (
    Column("key", fixed=True),
    Column("user"),
    Column("made, UTC", fixed=True),
    Column("uses", number=True),
)
ROW = ("key_01M7ZNYTNGE3NB7S5GARYF16GB", "a user of long name", "2026-01-31 10:00", "1,234")


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_what_is_fixed_is_whole_however_narrow_the_terminal_is(width: int) -> None:
    told = io.StringIO()
    draw(Console(file=told, width=width, color_system=None), COLUMNS, [ROW, ROW])
    text = told.getvalue()
    lines = text.splitlines()
    assert all(len(line) <= width for line in lines)
    for cell in (ROW[0], ROW[2], ROW[3], *(column.name for column in COLUMNS)):
        assert cell in text
    if width == 120:
        assert any(all(cell in line for cell in ROW) for line in lines)
    if width >= 80:
        assert any(all(cell in line for cell in (ROW[0], ROW[2], ROW[3])) for line in lines)
    else:
        assert "user       a user of long name" in lines
