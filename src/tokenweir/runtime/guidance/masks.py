"""Which tokens may come next in a guided answer: compiled once per guidance, followed once per sequence."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from typing import Final

import msgspec
import numpy as np
from llguidance import LLMatcher, LLParserLimits
from numpy.typing import NDArray

from tokenweir.core.errors import GuidanceError
from tokenweir.core.units import format_duration
from tokenweir.ports.inference import Guidance
from tokenweir.runtime.guidance.sources import compact, grammar_source
from tokenweir.runtime.guidance.vocabulary import Vocabulary

Mask = NDArray[np.uint32]
"""A bit for each token, the lowest first: 1 where it may come next."""

_S: Final = 1_000_000_000
_SHOWN: Final = 300
_MAX_STATES: Final = 100_000


class CompilerOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of a compiler: kept guidance by number and by bytes of its text, and the longest compilation.

    What took longer than ``compile_limit_ns`` is refused, and is known for it from then on.
    """

    entries: int = 256
    text_bytes: int = 8 << 20
    compile_limit_ns: int = 5 * _S


class Guide:
    """Follows one sequence. It belongs to that sequence alone and is used by one thread at a time."""

    __slots__ = ("_end", "_ends", "_mask", "_matcher")

    def __init__(self, matcher: LLMatcher, mask: Mask, end: Mask, ends: frozenset[int]) -> None:
        self._matcher = matcher
        self._mask = mask
        self._end = end
        self._ends = ends

    @property
    def done(self) -> bool:
        """Whether the answer is whole: nothing but its end may follow."""
        return self._mask is self._end

    def mask(self) -> Mask:
        """Return which tokens may come next, ``ceil(width / 32)`` words; only the ends once it is ``done``.

        The array is not to be changed. Asking again gives the same until :meth:`accept`.
        """
        return self._mask

    def accept(self, token: int) -> None:
        """Go on by ``token``; once it is ``done``, its end may come any number of times.

        Raises:
            GuidanceError: the token was not allowed, or what may follow it is too much to work out.
        """
        if self.done:
            if token not in self._ends:
                raise GuidanceError(f"the token {token} follows an answer that is whole")
            return
        if not self._matcher.consume_token(token):
            raise GuidanceError(
                f"the token {token} is not what the guidance allows: {_reason(self._matcher.get_error())}"
            )
        self._mask = self._end if self._matcher.is_stopped() else _next(self._matcher)

    def copy(self) -> Guide:
        """Return a guide that has come as far and goes on by itself, to try drafted tokens with."""
        return Guide(self._matcher.deep_copy(), self._mask, self._end, self._ends)


class _Compiled(msgspec.Struct, frozen=True):
    matcher: LLMatcher
    mask: Mask


class GuideCompiler:
    """Makes guides for one vocabulary. Safe to use from several threads."""

    def __init__(self, vocabulary: Vocabulary, options: CompilerOptions | None = None) -> None:
        self._vocabulary = vocabulary
        self._options = options or CompilerOptions()
        self._kept: OrderedDict[Guidance, _Compiled | GuidanceError] = OrderedDict()
        self._kept_bytes = 0
        self._lock = threading.Lock()
        self._end = np.zeros(vocabulary.words, dtype=np.uint32)
        for token in vocabulary.ends:
            self._end[token // 32] |= np.uint32(1 << token % 32)
        self._end.flags.writeable = False
        self._ends = frozenset(vocabulary.ends)

    @property
    def kept(self) -> int:
        """How many are kept compiled."""
        return len(self._kept)

    def check(self, guidance: Guidance) -> None:
        """Compile ``guidance`` and keep it. Raises GuidanceError."""
        self._compiled(guidance)

    def compile(self, guidance: Guidance) -> Guide:
        """Return a fresh guide.

        Raises:
            GuidanceError: it is malformed or unsupported, nothing satisfies it, the vocabulary cannot write it, or it
                takes too long to compile.
        """
        compiled = self._compiled(guidance)
        with self._lock:
            # A matcher may be used by one thread only, also to be copied from.
            matcher = compiled.matcher.deep_copy()
        mask = self._end if matcher.is_stopped() else compiled.mask
        return Guide(matcher, mask, self._end, self._ends)

    def _compiled(self, guidance: Guidance) -> _Compiled:
        with self._lock:
            found = self._kept.get(guidance)
            if found is not None:
                self._kept.move_to_end(guidance)
        if found is None:
            found = self._compile(guidance)
            with self._lock:
                self._keep(guidance, found)
        if isinstance(found, GuidanceError):
            raise GuidanceError(found.message, mend=found.mend)
        return found

    def _compile(self, guidance: Guidance) -> _Compiled | GuidanceError:
        """Return it compiled, or why it cannot be."""
        tokenizer = self._vocabulary.tokenizer()
        try:
            grammar = grammar_source().grammar(compact(guidance))
        except GuidanceError as error:
            return GuidanceError(error.message, mend=error.mend)
        begin_ns = time.monotonic_ns()
        limits = LLParserLimits(max_lexer_states=_MAX_STATES, verbose_errors=False)
        matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=limits)
        what = f"the {guidance.kind.replace('_', ' ')}"
        if matcher.is_error():
            return _refused(f"{what} cannot guide an answer: {_reason(matcher.get_error())}")
        try:
            mask = self._end if matcher.is_stopped() else _next(matcher)
        except GuidanceError as error:
            return _refused(f"{what} cannot guide an answer: {error.message}")
        took_ns = time.monotonic_ns() - begin_ns
        if took_ns > self._options.compile_limit_ns:
            limit = format_duration(self._options.compile_limit_ns)
            return _refused(f"{what} took {took_ns / _S:.1f} s to compile, more than {limit}")
        return _Compiled(matcher, mask)

    def _keep(self, guidance: Guidance, compiled: _Compiled | GuidanceError) -> None:
        if guidance not in self._kept:
            self._kept_bytes += len(guidance.value)
        self._kept[guidance] = compiled
        while self._kept and (
            len(self._kept) > self._options.entries or self._kept_bytes > self._options.text_bytes
        ):
            oldest, _ = self._kept.popitem(last=False)
            self._kept_bytes -= len(oldest.value)


def _refused(what: str) -> GuidanceError:
    return GuidanceError(what, mend="mend it, or send something simpler")


def _next(matcher: LLMatcher) -> Mask:
    """Return which tokens may come next. Raises GuidanceError where that is too much work, or there are none."""
    try:
        mask = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint32)
    except ValueError as error:
        raise GuidanceError(_reason(str(error))) from error
    if matcher.is_error() or not mask.any():
        raise GuidanceError(_reason(matcher.get_error()) or "no token of this model can follow")
    return mask


def _reason(text: str) -> str:
    """Return the telling line of llguidance's errors, which may be a screenful."""
    plain = text.partition("<state>")[0].strip()
    _, found, last = plain.rpartition("error: ")
    line = last if found else plain
    return line.splitlines()[0][:_SHOWN] if line else ""
