"""A loaded corpus."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import numpy.typing as npt

from tokenweir.core.corpus import Sample, corpus_hash


class Corpus:
    """Samples in their order, under a name. ``hash`` identifies the content whatever the name.

    ``sized_by_replies`` says that a sample without ``max_tokens`` should be answered at the length of its
    ``expected`` reply, because the corpus is a record of real conversations. ``input_tokens`` are the lengths
    to which its prompts were cut, int32, where they were.
    """

    def __init__(
        self,
        name: str,
        samples: tuple[Sample, ...],
        *,
        sized_by_replies: bool = False,
        input_tokens: npt.NDArray[np.int32] | None = None,
    ) -> None:
        self.name = name
        self.samples = samples
        self.sized_by_replies = sized_by_replies
        self.input_tokens = input_tokens

    def __len__(self) -> int:
        return len(self.samples)

    @cached_property
    def hash(self) -> str:
        """SHA-256 over the ordered sample hashes, lower-case hex."""
        return corpus_hash(self.samples)
