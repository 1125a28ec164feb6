"""Corpora: what is asked, from files, from the package or made up."""

from __future__ import annotations

from tokenweir.bench.corpora.corpus import Corpus
from tokenweir.bench.corpora.load import load_corpus
from tokenweir.bench.corpora.shipped import SHIPPED, shipped_prose
from tokenweir.bench.corpora.synthetic import cut_corpus, synthetic_corpus

__all__ = ["SHIPPED", "Corpus", "cut_corpus", "load_corpus", "shipped_prose", "synthetic_corpus"]
