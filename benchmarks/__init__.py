"""What Tokenweir itself can do, measured: ``python -m benchmarks`` (or ``make bench``) measures all of it."""

from __future__ import annotations
