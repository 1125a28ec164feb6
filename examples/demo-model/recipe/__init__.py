"""How the demo model is made: tasks, texts, tokenizer, training and checks."""

from __future__ import annotations
