"""``weir demo``: the main job on real input, on one machine and with no model at hand."""

from __future__ import annotations
