"""What is done after a failure: whom to ask next, after which pause, and when to give up."""

from __future__ import annotations

import random

from tokenweir.client.options import Options, Origin
from tokenweir.core.clock import Clock
from tokenweir.core.errors import DeadlineError, QuotaExceededError, UnreachableError, WeirError
from tokenweir.core.units import format_duration


class Gateways:
    """The gateways that may be asked, and which of them is asked now. All operations of a client share it."""

    def __init__(self, origins: tuple[Origin, ...]) -> None:
        self._origins = origins
        self._at = 0
        self.reached = False
        """Whether any of them has ever answered: one that never did is taken for a slip in its URL."""

    @property
    def now(self) -> Origin:
        """The one to ask."""
        return self._origins[self._at]

    def __len__(self) -> int:
        return len(self._origins)

    def turn_from(self, origin: Origin) -> None:
        """Ask the next one, unless another operation has turned away from ``origin`` already."""
        if self.now == origin:
            self._at = (self._at + 1) % len(self._origins)


class Trials:
    """One operation's attempts. Patience counts from the first of the failures since something came."""

    def __init__(
        self, gateways: Gateways, options: Options, clock: Clock, *, deadline_ns: int | None = None
    ) -> None:
        self._gateways = gateways
        self._options = options
        self._clock = clock
        self._deadline_ns = deadline_ns
        self._failures = 0
        self._since_ns = 0

    def progress(self) -> None:
        """Something has come."""
        self._failures = 0

    def limit(self, most_ns: int) -> int:
        """Return how long a step may take. Raises DeadlineError when no time is left."""
        if self._deadline_ns is None:
            return most_ns
        left_ns = self._deadline_ns - self._clock.monotonic_ns()
        if left_ns <= 0:
            raise DeadlineError(
                "the request has not ended in the time that was given",
                mend="it goes on at the gateway: wait for it again, or cancel it",
            )
        return min(most_ns, left_ns)

    def failed(
        self, error: WeirError, origin: Origin, *, final: bool = False, advised_ns: int | None = None
    ) -> int:
        """Return how long to rest before the next attempt, ns. Raises ``error`` where there is to be none."""
        now_ns = self._clock.monotonic_ns()
        if not self._failures:
            self._since_ns = now_ns
        self._failures += 1
        hopeless = not self._gateways.reached and self._failures >= len(self._gateways)
        if (final or hopeless) and self._failures >= len(self._gateways):
            raise error
        # A quota is the same at every gateway.
        same_everywhere = isinstance(error, QuotaExceededError)
        if not same_everywhere:
            self._gateways.turn_from(origin)
        rest_ns = self._rest_ns(advised_ns, same_everywhere=same_everywhere)
        tried_ns = now_ns + rest_ns - self._since_ns
        if tried_ns > self._options.patience_ns:
            raise _given_up(error, self._options.patience_ns)
        if self._deadline_ns is not None:
            rest_ns = self.limit(rest_ns)
        return rest_ns

    def _rest_ns(self, advised_ns: int | None, *, same_everywhere: bool) -> int:
        """Return 0 while there is a gateway that was not asked yet, then doubled and jittered pauses, or as advised."""
        after = self._failures - len(self._gateways)
        if after < 0 and not same_everywhere:
            return 0
        most_ns = min(self._options.backoff_most_ns, self._options.backoff_ns << max(0, min(after, 32)))
        return max(int(most_ns * random.uniform(0.5, 1.0)), advised_ns or 0)


def _given_up(error: WeirError, patience_ns: int) -> WeirError:
    """Return the error to raise once patience is over."""
    if isinstance(error, UnreachableError):
        return UnreachableError(f"{error.message}, for {format_duration(patience_ns)}", mend=error.mend)
    return error
