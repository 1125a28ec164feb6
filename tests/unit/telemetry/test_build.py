from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tokenweir.telemetry import build


def git(place: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "init.defaultBranch=main"]
    done = subprocess.run(
        ["git", *identity, *arguments], cwd=place, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    place = tmp_path / "checkout"
    place.mkdir()
    git(place, "init", "--quiet")
    git(place, "commit", "--quiet", "--allow-empty", "--message", "first")
    return place


def test_a_branch_a_packed_branch_and_a_bare_commit_are_read(checkout: Path) -> None:
    sha = git(checkout, "rev-parse", "HEAD")
    assert build.commit_of(checkout) == sha
    git(checkout, "pack-refs", "--all")
    assert build.commit_of(checkout) == sha
    git(checkout, "checkout", "--quiet", "--detach")
    assert build.commit_of(checkout) == sha


def test_a_linked_work_tree_is_read(checkout: Path, tmp_path: Path) -> None:
    git(checkout, "worktree", "add", "--quiet", "-b", "other", str(tmp_path / "other"))
    assert build.commit_of(tmp_path / "other") == git(checkout, "rev-parse", "HEAD")


def test_no_commit_is_none(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    assert build.commit_of(tmp_path) is None


def test_our_own_is_a_commit_or_unknown() -> None:
    ours = build.commit()
    assert ours is None or re.fullmatch("[0-9a-f]{40,64}", ours)
