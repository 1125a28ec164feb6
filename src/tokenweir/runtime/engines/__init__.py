"""Inference engines: each a module with ``create(options)``, loaded by name from :mod:`.registry`."""

from __future__ import annotations
