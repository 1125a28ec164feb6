"""One run as one page: ``render`` writes ``report.html`` into its directory."""

from __future__ import annotations

from tokenweir.bench.report.page import render

__all__ = ["render"]
