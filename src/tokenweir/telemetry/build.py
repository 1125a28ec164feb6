"""Which build of Tokenweir is running."""

from __future__ import annotations

import json
import re
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import cast

_SHA = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")


def commit() -> str | None:
    """Return the commit that the running code was checked out or installed from; ``None`` when not known.

    Changes that are not committed do not show.
    """
    checkout = Path(__file__).resolve().parents[3]
    return commit_of(checkout) if (checkout / ".git").exists() else _installed_commit()


def commit_of(checkout: Path) -> str | None:
    """Return the commit checked out in the git work tree at ``checkout``, by its files alone."""
    git = checkout / ".git"
    if git.is_file():
        git = checkout / git.read_text(encoding="utf-8").removeprefix("gitdir:").strip()
    head = _text(git / "HEAD")
    if not head.startswith("ref:"):
        return head if _SHA.fullmatch(head) else None
    name = head.removeprefix("ref:").strip()
    common = git / (_text(git / "commondir") or ".")
    for place in (git / name, common / name):
        if _SHA.fullmatch(_text(place)):
            return _text(place)
    for line in _text(common / "packed-refs").splitlines():
        sha, _, packed = line.partition(" ")
        if packed == name and _SHA.fullmatch(sha):
            return sha
    return None


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8").strip() if file.is_file() else ""


def _installed_commit() -> str | None:
    """Return the commit that pip noted when it installed from a repository."""
    try:
        noted = distribution("tokenweir").read_text("direct_url.json")
    except PackageNotFoundError:
        return None
    origin = cast("dict[str, dict[str, str]]", json.loads(noted or "{}"))
    return origin.get("vcs_info", {}).get("commit_id")
