"""A chart as plain values: what is drawn, and nothing of how."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    BARS = "bars"
    """Groups by x, a bar a series."""
    LINES = "lines"
    """x is a number."""
    INTERVALS = "intervals"
    """x is a category, drawn downwards; y a point within its interval."""


@dataclass(frozen=True)
class Point:
    x: float | str
    y: float
    low: float | None = None
    high: float | None = None
    label: str = ""
    """Written beside it."""


@dataclass(frozen=True)
class Series:
    name: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Panel:
    series: tuple[Series, ...]
    title: str = ""


@dataclass(frozen=True)
class Bound:
    """What was asked of the figures."""

    y: float
    label: str


@dataclass(frozen=True)
class Chart:
    """One message."""

    name: str
    """Of the file, without its ending."""
    kind: Kind
    title: str
    """The message, with the figures that carry it."""
    measured: str
    """What was measured, and on what."""
    x_label: str
    y_label: str
    panels: tuple[Panel, ...]
    bound: Bound | None = None
    start: float = 0.0
    """Where the y axis starts; what lies below is written at its edge."""
