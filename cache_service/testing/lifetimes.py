"""Check what clients observe of the lifetimes of shared contexts: none ends early or late, and changes renew them."""

from __future__ import annotations

from collections import defaultdict

from cache_service.core.types import Context, ContextId, EditId, Lifetime
from cache_service.testing.moments import Clock, Moments, Rising, Violation

NEVER = float("inf")
ROUNDING_S = 1e-3
"""The end of a lifetime is a sum, from which its beginning can be found only about as exactly."""


class LifetimeHistory:
    """Checks the lifetimes in one history. A method raises Violation if an observation can't be true.

    A change that was sent, answered or not, may be carried out up to `strays_s` later by `clock`. Lifetimes end by
    `wall_clock`, which is the service's.
    """

    def __init__(self, moments: Moments, *, clock: Clock, wall_clock: Clock, strays_s: float) -> None:
        self._moments = moments
        self._clock, self._wall_clock, self._strays_s = clock, wall_clock, strays_s
        self.num_renewals = 0
        """Lifetimes that had to begin again, and did."""
        self._sent: dict[EditId, tuple[float, float]] = {}
        """The times by both clocks at which each change was first sent."""
        self._replacements: defaultdict[ContextId, list[tuple[float, float]]] = defaultdict(list)
        """By `clock`: times at which changes with their own time to live were sent, and the earliest end of each."""
        self._safe_until: dict[ContextId, float] = {}
        self._swept = Rising()

    def begin_change(self, change: EditId, context: ContextId | None = None, ttl_s: float | None = None) -> None:
        """Record that a creation, edit or renewal will be sent, for the first time or again."""
        now = self._wall_clock()
        self._sent.setdefault(change, (self._clock(), now))
        if context is not None and ttl_s is not None:
            self._replacements[context].append((self._clock(), now + ttl_s))
            self._safe_until[context] = min(now + ttl_s, self._safe_until.get(context, NEVER))

    def end_change(self, change: EditId, context: ContextId, lifetime: Lifetime | None) -> None:
        """Require that the lifetime began no earlier than the change was sent for the first time."""
        sent_at, earliest = self._sent[change]
        if lifetime is not None:
            began = lifetime.expires_at - lifetime.ttl_s
            if not earliest - ROUNDING_S <= began <= self._wall_clock() + ROUNDING_S:
                raise Violation(f"the change {change} of {context} did not begin its lifetime again: {lifetime}")
            self.num_renewals += 1
        self._know(context, lifetime, sent_at)

    def end_sweep(self, now: float) -> None:
        """Record that the service has deleted all contexts whose lifetime had ended at `now`."""
        self._swept.rise(self._moments.now, now)

    def end_read(self, began: int, context: Context) -> None:
        """Require that the context was not due for deletion before the read began."""
        swept = self._swept.before(began)
        if context.lifetime is not None and context.lifetime.expires_at <= swept:
            raise Violation(f"{context.id} is read, though all that had ended by {swept} was gone: {context.lifetime}")
        self._know(context.id, context.lifetime, self._moments.time_of(began))

    def may_have_ended(self, context: ContextId) -> bool:
        """Return whether the context may have been deleted since its lifetime had ended."""
        return self._safe_until.get(context, NEVER) <= self._wall_clock()

    def _know(self, context: ContextId, lifetime: Lifetime | None, since: float) -> None:
        """Record a lifetime that the context had at `since` or later: only a change that was still to come shortens it.

        `since` and the changes are compared by `clock`.
        """
        pending = [end for sent, end in self._replacements[context] if sent + self._strays_s >= since]
        end = min([NEVER if lifetime is None else lifetime.expires_at, *pending])
        self._safe_until[context] = max(end, self._safe_until.get(context, end))
