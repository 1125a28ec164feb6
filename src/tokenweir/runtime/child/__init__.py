"""The process that owns a device: it loads models, decodes, and answers the server over the bridge."""

from __future__ import annotations
