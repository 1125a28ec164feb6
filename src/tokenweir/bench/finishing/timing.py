"""Times of a segment's tokens, all at once in NumPy: which read completed each, its gap, and what the gap is worth."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from tokenweir.bench.finishing.exchange import Exchange
from tokenweir.bench.finishing.segments import Ints
from tokenweir.bench.finishing.spool import NULL

Observe = Callable[[Ints, Ints], None]
"""Shown (TTFTs, gaps) in ns as they are found, for the live view."""

Records: TypeAlias = npt.NDArray[Any]
"""Chunk records: an array of ``spool.CHUNK`` or ``spool.TRUE_CHUNK``."""

_MOST_TOKENS = np.iinfo(np.int16).max


class Tokens:
    """The tokens of one segment as they are decoded: parallel columns, offsets counted over all its bodies.

    ``owners`` has, in order, (request number, exchange, how many of the tokens are its).
    """

    __slots__ = ("counts", "ends", "owners", "sent")

    def __init__(self) -> None:
        self.ends: list[int] = []
        self.counts: list[int] = []
        self.sent: list[int] = []
        self.owners: list[tuple[int, Exchange, int]] = []


class Timing:
    """Makes chunk records. ``start_ns`` is the run's start; ``kind`` the record type, with true times or without."""

    def __init__(self, kind: np.dtype[np.void], start_ns: int, observe: Observe | None) -> None:
        self._kind = kind
        self._true = "true_sent_ns" in (kind.names or ())
        self._start_ns = start_ns
        self._observe = observe

    def records(self, tokens: Tokens, times: Ints, body_ends: Ints) -> Records:
        """Return a record per token, and carry each exchange's totals on.

        ``times`` and ``body_ends`` have an entry per read: when it arrived, and how many body bytes of the
        segment had come with it. A token's time is that of the read that completed it.
        """
        read_of = np.searchsorted(body_ends, np.array(tokens.ends, np.int64), side="left")
        at = times[read_of]
        held = np.bincount(read_of, minlength=len(times))
        shared = held[read_of] > 1
        counts = np.array([count for _, _, count in tokens.owners], np.int64)
        firsts = np.cumsum(counts) - counts
        owners = [exchange for _, exchange, _ in tokens.owners]
        gaps = _gaps(at, firsts, np.array([owner.last_token_ns for owner in owners], np.int64))
        before_shared = np.concatenate([[False], shared[:-1]])
        before_shared[firsts] = [owner.last_shared for owner in owners]
        begun = np.array([owner.chunks for owner in owners], np.int64)
        made: Records = np.zeros(len(at), self._kind)
        made["request"] = np.repeat(np.array([number for number, _, _ in tokens.owners], np.int64), counts)
        made["index"] = np.arange(len(at)) - np.repeat(firsts - begun, counts)
        made["received_ns"] = at
        made["gap_ns"] = gaps
        made["tokens"] = np.minimum(np.array(tokens.counts, np.int64), _MOST_TOKENS)
        made["shared"] = shared
        made["excluded"] = (shared | before_shared) & (gaps >= 0)
        if self._true:
            self._true_times(made, np.array(tokens.sent, np.int64), firsts, owners)
        opens = shared & (np.diff(read_of, prepend=-1) != 0)
        self._carry(tokens, made, firsts, np.add.reduceat(opens.astype(np.int64), firsts))
        return made

    def _true_times(self, made: Records, sent: Ints, firsts: Ints, owners: list[Exchange]) -> None:
        known = sent != NULL
        true = np.where(known, sent - self._start_ns, NULL)
        before = np.concatenate([[NULL], true[:-1]])
        before[firsts] = [owner.last_true_ns for owner in owners]
        made["true_sent_ns"] = true
        both = known & (before != NULL)
        made["true_gap_ns"] = np.where(both, true - np.where(both, before, 0), NULL)

    def _carry(self, tokens: Tokens, made: Records, firsts: Ints, several: Ints) -> None:
        """Add each exchange's share to its totals, and keep its last chunk for the next segment."""
        gaps: Ints = made["gap_ns"]
        excluded: npt.NDArray[np.bool_] = made["excluded"]
        usable = (gaps >= 0) & ~excluded
        used = np.where(usable, gaps, 0)
        counts = np.array(tokens.counts, np.int64)
        totals = zip(
            np.add.reduceat(used, firsts).tolist(),
            np.maximum.reduceat(used, firsts).tolist(),
            np.add.reduceat(usable.astype(np.int64), firsts).tolist(),
            np.add.reduceat(excluded.astype(np.int64), firsts).tolist(),
            np.add.reduceat(counts, firsts).tolist(),
            np.minimum.reduceat(counts, firsts).tolist(),
            several.tolist(),
            strict=True,
        )
        at: list[int] = made["received_ns"].tolist()
        shared: list[bool] = made["shared"].tolist()
        true: list[int] = made["true_sent_ns"].tolist() if self._true else [NULL] * len(at)
        ttfts: list[int] = []
        first = 0
        for (_, exchange, count), (total, most, number, dropped, counted, least, multi) in zip(
            tokens.owners, totals, strict=True
        ):
            last = first + count - 1
            if exchange.first_token_ns == NULL:
                exchange.first_token_ns = at[first]
                exchange.true_first_ns = true[first]
                if exchange.sent_ns >= 0:
                    ttfts.append(at[first] + self._start_ns - exchange.sent_ns)
            exchange.last_token_ns = at[last]
            exchange.last_true_ns = true[last]
            exchange.last_shared = shared[last]
            exchange.chunks += count
            exchange.gap_sum += total
            exchange.gap_count += number
            exchange.gap_max = max(exchange.gap_max, most)
            exchange.gaps_excluded += dropped
            exchange.multi_event_reads += multi
            exchange.counted = NULL if least < 0 or exchange.counted == NULL else exchange.counted + counted
            first += count
        if self._observe is not None:
            self._observe(np.array(ttfts, np.int64), gaps[usable])


def _gaps(at: Ints, firsts: Ints, previous: Ints) -> Ints:
    """Return each token's distance from the one before; −1 for the first of its request."""
    gaps = np.diff(at, prepend=0)
    new = previous == NULL
    gaps[firsts] = np.where(new, -1, at[firsts] - np.where(new, 0, previous))
    return gaps
