"""From options to the workload: which corpus, brought to which lengths, asked how."""

from __future__ import annotations

from typing import Final

import numpy as np

from tokenweir.bench.arrivals import Trace
from tokenweir.bench.corpora import Corpus, cut_corpus, load_corpus, synthetic_corpus
from tokenweir.bench.corpora.traces import TraceFile, load_trace
from tokenweir.bench.options import DEFAULT_CORPUS, BenchOptions
from tokenweir.bench.tags import Tagger
from tokenweir.bench.workload import Asking, Workload
from tokenweir.core.errors import SpecError
from tokenweir.core.scenario import Lengths, draw_lengths
from tokenweir.ports.tokenizer import Tokenizer

MAX_SAMPLES: Final = 10_000
"""Synthetic samples are at most this many; later requests ask them again."""

UNCOUNTED_SAMPLES: Final = 1_000
"""Synthetic samples of a load that only a duration bounds."""

MAX_TEXT_TOKENS: Final = 20_000_000
"""Synthetic samples together are at most this long; longer ones are fewer."""


def plan_workload(options: BenchOptions, tokenizer: Tokenizer, *, model: str) -> Workload:
    """Return the workload that ``options`` ask for; the same options and tokenizer always give the same one.

    ``model`` is the name the requests carry. Raises CorpusError for a corpus or trace that cannot be read and
    SpecError where its lengths cannot be made.
    """
    trace = next((arrival for arrival in options.arrivals if isinstance(arrival, Trace)), None)
    asking = Asking(
        kind=options.asked_kind,
        model=model,
        sampling=options.sampling,
        stream=options.streams,
        # A trace's requests belong to its times.
        shuffled=options.shuffle and trace is None,
        unique_prompts=options.unique_prompts,
        seed=options.seed,
    )
    return Workload(_corpus(options, tokenizer, trace), asking, tokenizer)


def _corpus(options: BenchOptions, tokenizer: Tokenizer, trace: Trace | None) -> Corpus:
    if trace is not None:
        return _trace_corpus(options, tokenizer, load_trace(trace.path))
    if options.lengths is None:
        return load_corpus(options.corpus or DEFAULT_CORPUS)
    count = min(options.request_limit or UNCOUNTED_SAMPLES, MAX_SAMPLES)
    lengths = _shortened(draw_lengths(options.lengths, count, seed=options.seed))
    return _of_lengths(options, tokenizer, lengths)


def _of_lengths(options: BenchOptions, tokenizer: Tokenizer, lengths: Lengths) -> Corpus:
    tags: list[str] = []
    if options.unique_prompts:
        tagger = Tagger(tokenizer, seed=options.seed)
        tags = [tagger.tag(0, index, 0) for index in range(lengths.input_tokens.size)]
    if options.corpus is None:
        return synthetic_corpus(tokenizer, lengths, seed=options.seed, tags=tags)
    return cut_corpus(tokenizer, load_corpus(options.corpus), lengths, seed=options.seed, tags=tags)


def _trace_corpus(options: BenchOptions, tokenizer: Tokenizer, trace: TraceFile) -> Corpus:
    if trace.samples:
        if options.corpus is not None:
            raise SpecError(f"the trace {trace.path} brings its own prompts", mend="drop --corpus")
        return Corpus(trace.name, trace.samples)
    count = trace.times_ns.size if options.requests is None else min(options.requests, trace.times_ns.size)
    lengths = Lengths(trace.input_tokens[:count], trace.output_tokens[:count])
    total = int(lengths.input_tokens.sum(dtype=np.int64))
    if total > MAX_TEXT_TOKENS:
        raise SpecError(
            f"the trace {trace.path} asks for {total} input tokens, more than {MAX_TEXT_TOKENS} are made",
            mend="replay fewer of its requests with --requests",
        )
    return _of_lengths(options, tokenizer, lengths)


def _shortened(lengths: Lengths) -> Lengths:
    """Keep the first samples that together stay within the bound; at least one."""
    keep = max(
        int(np.searchsorted(np.cumsum(lengths.input_tokens, dtype=np.int64), MAX_TEXT_TOKENS, "right")), 1
    )
    return Lengths(lengths.input_tokens[:keep], lengths.output_tokens[:keep])
