"""Order the observations of many clients, and name what breaks an invariant."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable

Clock = Callable[[], float]


class Violation(AssertionError):  # noqa: N818 (the name says what it is)
    """An invariant of the protocol was broken."""


class Moments:
    """Counts the operations of all clients. The count at which one begins is its moment."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._times: list[float] = []

    @property
    def now(self) -> int:
        """The moment at which the newest operation began."""
        return len(self._times)

    def begin(self) -> int:
        """Return the moment at which a call is sent."""
        self._times.append(self._clock())
        return self.now

    def time_of(self, moment: int) -> float:
        """Return the time at which a call was sent."""
        return self._times[moment - 1]


class Rising:
    """Holds a value that only rises, with its value at every earlier moment."""

    def __init__(self) -> None:
        self._moments: list[int] = []
        self._values: list[float] = []

    def rise(self, moment: int, value: float) -> None:
        if not self._values or value > self._values[-1]:
            self._moments.append(moment)
            self._values.append(value)

    def before(self, moment: int) -> float:
        """Return the value before `moment`, or -1 if none was known yet."""
        index = bisect_left(self._moments, moment)
        return self._values[index - 1] if index else -1
