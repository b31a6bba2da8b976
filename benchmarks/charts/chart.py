"""A chart is plain values, which say what to draw and not how."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    BARS = "bars"
    """Groups of bars by x, with one bar a series."""
    LINES = "lines"
    """Lines over x, which is a number."""
    INTERVALS = "intervals"
    """Points within their intervals along the horizontal axis, one line a category x."""


@dataclass(frozen=True)
class Point:
    x: float | str
    y: float
    low: float | None = None
    high: float | None = None
    label: str = ""
    """Text beside the point."""


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
    """Marks the value that the figures must reach or keep below."""

    y: float
    label: str


@dataclass(frozen=True)
class Chart:
    """Describes a chart, which carries one message."""

    name: str
    """Name of the file, without its ending."""
    kind: Kind
    title: str
    """The message, with the figures that carry it."""
    measured: str
    """The measured quantity and the device."""
    x_label: str
    y_label: str
    panels: tuple[Panel, ...]
    bound: Bound | None = None
    start: float = 0.0
    """Start of the y axis; values below it are written at its edge."""
