"""Order the observations of many clients, and name what breaks an invariant."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable

Clock = Callable[[], float]


class Violation(AssertionError):  # noqa: N818 (the name says what it is)
    """An invariant of the protocol was broken."""


class Moments:
    """Counts the operations of all clients. The count at which one begins is its moment."""

    def __init__(self) -> None:
        self.now = 0

    def begin(self) -> int:
        """Return the moment at which a call is sent."""
        self.now += 1
        return self.now


class Rising:
    """Holds a value that only rises, with its value at every earlier moment."""

    def __init__(self) -> None:
        self._moments: list[int] = []
        self._values: list[int] = []

    def rise(self, moment: int, value: int) -> None:
        if not self._values or value > self._values[-1]:
            self._moments.append(moment)
            self._values.append(value)

    def before(self, moment: int) -> int:
        """Return the value before `moment`, or -1 if none was known yet."""
        index = bisect_left(self._moments, moment)
        return self._values[index - 1] if index else -1
