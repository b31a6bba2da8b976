"""Simulate a network and its time: messages are lost, delayed, duplicated and reordered, all from one seed."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Faults:
    """Sets how often a message is lost, duplicated or delayed. Chances are for each message; delays are in seconds."""

    drop: float = 0.0
    duplicate: float = 0.0
    straggle: float = 0.0
    """The probability of a delay of up to `straggle_s`, so that later messages overtake it."""
    delay_s: float = 0.002
    straggle_s: float = 1.0


Action = Callable[[], None]


class Network:
    """Runs actions in the order of simulated time. All randomness comes from `seed`, so a run can be repeated."""

    def __init__(self, seed: int, faults: Faults) -> None:
        self.rng = random.Random(seed)
        self.faults = faults
        self.now = 0.0
        self._queue: list[tuple[float, int, Action]] = []
        self._num_scheduled = 0

    def after(self, seconds: float, action: Action) -> None:
        """Run `action` so many seconds later, without faults."""
        self._num_scheduled += 1
        heapq.heappush(self._queue, (self.now + seconds, self._num_scheduled, action))

    def send(self, deliver: Action) -> None:
        """Run `deliver` when the message arrives: once, twice or never."""
        chance = self.rng.random
        if chance() < self.faults.drop:
            return
        self.after(self._delay_s(), deliver)
        if chance() < self.faults.duplicate:
            self.after(self._delay_s(), deliver)

    def _delay_s(self) -> float:
        if self.rng.random() < self.faults.straggle:
            return self.rng.random() * self.faults.straggle_s
        return self.rng.random() * self.faults.delay_s

    def run(self, until: Callable[[], bool]) -> None:
        """Run actions until `until` returns true or no action is left."""
        while self._queue and not until():
            self.now, _, action = heapq.heappop(self._queue)
            action()

    def __repr__(self) -> str:
        return f"<Network at {self.now:.3f} s [{len(self._queue)} under way]>"
