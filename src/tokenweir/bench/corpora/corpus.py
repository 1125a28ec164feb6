"""A loaded corpus."""

from __future__ import annotations

from functools import cached_property

from tokenweir.core.corpus import Sample, corpus_hash


class Corpus:
    """Samples in their order, under a name. ``hash`` identifies the content whatever the name.

    ``sized_by_replies`` says that a sample without ``max_tokens`` should be answered at the length of its
    ``expected`` reply, because the corpus is a record of real conversations.
    """

    def __init__(self, name: str, samples: tuple[Sample, ...], *, sized_by_replies: bool = False) -> None:
        self.name = name
        self.samples = samples
        self.sized_by_replies = sized_by_replies

    def __len__(self) -> int:
        return len(self.samples)

    @cached_property
    def hash(self) -> str:
        """SHA-256 over the ordered sample hashes, lower-case hex."""
        return corpus_hash(self.samples)
