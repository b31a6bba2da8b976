"""Estimate the seconds of a build and of a fetch from those that were measured. Pure.

Seconds are a linear function of size, fitted by least squares. The prior gives two permanent samples; the weight of a
measured sample decays with each later one, so that the line follows a machine whose load changes.
"""

from __future__ import annotations

from dataclasses import dataclass

SAMPLE_DECAY = 0.9
"""The factor that multiplies the weights of all earlier samples when a new one arrives."""
SKIP_DECAY = 0.97
"""The factor that multiplies the weights of all samples when a fetch is skipped."""
PRIOR_WEIGHT = 0.5


@dataclass(frozen=True)
class Prior:
    """Gives the estimate before any measurement: `fixed_s` seconds plus `unit_s` a unit; `size` is a typical size."""

    fixed_s: float
    unit_s: float
    size: float


@dataclass
class WeightedSums:
    """Keeps weighted sums over samples (x, y)."""

    w: float = 0.0
    x: float = 0.0
    y: float = 0.0
    xx: float = 0.0
    xy: float = 0.0

    def scale(self, factor: float) -> None:
        self.w, self.x, self.y = self.w * factor, self.x * factor, self.y * factor
        self.xx, self.xy = self.xx * factor, self.xy * factor

    def add(self, x: float, y: float, weight: float) -> None:
        self.w, self.x, self.y = self.w + weight, self.x + weight * x, self.y + weight * y
        self.xx, self.xy = self.xx + weight * x * x, self.xy + weight * x * y


class LinearFit:
    """Fits seconds as a linear function of size. Neither intercept nor slope is ever negative."""

    def __init__(self, prior: Prior) -> None:
        self._scale = prior.size
        self._prior, self._seen = WeightedSums(), WeightedSums()
        self._prior.add(0.0, prior.fixed_s, PRIOR_WEIGHT)
        self._prior.add(1.0, prior.fixed_s + prior.unit_s * prior.size, PRIOR_WEIGHT)

    def add(self, size: float, seconds: float) -> None:
        """Add one measured sample to the fit."""
        self._seen.scale(SAMPLE_DECAY)
        self._seen.add(size / self._scale, seconds, 1.0)

    def decay(self) -> None:
        """Reduce the weight of all samples: without new ones the line returns to the prior."""
        self._seen.scale(SKIP_DECAY)

    def seconds(self, size: float) -> float:
        """Return the estimated seconds for an item of this size."""
        a, b = self._prior, self._seen
        w, x, y, xx, xy = a.w + b.w, a.x + b.x, a.y + b.y, a.xx + b.xx, a.xy + b.xy
        slope = max(0.0, (w * xy - x * y) / (w * xx - x * x))
        fixed = (y - slope * x) / w
        if fixed < 0:
            fixed, slope = 0.0, xy / xx
        return fixed + slope * size / self._scale


@dataclass(frozen=True)
class Costs:
    """Estimates the seconds of building and of fetching one entry."""

    build_s: float
    fetch_s: float


class CostModel:
    """Estimates builds by token-layers (tokens x layers kept), and fetches by bytes."""

    def __init__(self, build: Prior, fetch: Prior) -> None:
        self._build, self._fetch = LinearFit(build), LinearFit(fetch)

    def record_build(self, token_layers: int, seconds: float) -> None:
        self._build.add(token_layers, seconds)

    def record_fetch(self, num_bytes: int, seconds: float) -> None:
        self._fetch.add(num_bytes, seconds)

    def record_skipped_fetch(self) -> None:
        """Record that a fetch was skipped as too slow, so that fetches are tried again after a while."""
        self._fetch.decay()

    def estimate(self, token_layers: int, num_bytes: int) -> Costs:
        return Costs(self._build.seconds(token_layers), self._fetch.seconds(num_bytes))
