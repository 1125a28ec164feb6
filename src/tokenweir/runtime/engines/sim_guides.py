"""Guides over the simulated model's vocabulary. Imported where guidance is first asked for: llguidance is heavy."""

from __future__ import annotations

from tokenweir.runtime.engines.sim_tokens import EOS, MARKS, PIECES
from tokenweir.runtime.guidance.masks import GuideCompiler
from tokenweir.runtime.guidance.vocabulary import piece_vocabulary


def compiler(width: int) -> GuideCompiler:
    """Return what makes guides for a model whose logits would be ``width`` wide."""
    return GuideCompiler(piece_vocabulary(PIECES, special=MARKS, ends=(EOS,), width=width))
