from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tokenweir.bench.reserve import Reserve
from tokenweir.core.errors import DiskFullError


def test_it_holds_real_blocks_without_a_name(tmp_path: Path) -> None:
    size = 8 << 20
    with Reserve(tmp_path, size) as reserve:
        assert reserve.held_bytes >= size
        assert list(tmp_path.iterdir()) == []
    assert reserve.held_bytes == 0


def test_more_than_is_free_is_refused_at_once(tmp_path: Path) -> None:
    too_much = shutil.disk_usage(tmp_path).free + (1 << 30)
    with pytest.raises(DiskFullError, match="too little to measure"), Reserve(tmp_path, too_much):
        pass
    assert list(tmp_path.iterdir()) == []
