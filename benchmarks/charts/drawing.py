"""Draws charts as SVG with real text, on a light card that is readable on dark pages too.

The same chart gives the same bytes, since ids come from a fixed salt and the file has no date. The file's description
holds the chart's values.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.charts.chart import Chart, Kind, Panel, Point, Series

INK, FAINT, CARD = "#1f2328", "#6b7280", "#ffffff"
COLOURS = {
    "none": "#7f7f7f",
    "prefix-naive": "#000000",
    "bicache": "#D55E00",
    "dual": "#E69F00",
    "bicache-dual": "#56B4E9",
    "lean": "#0072B2",
    "lean+anchors": "#009E73",
    "lean+skip-refresh": "#CC79A7",
}
OTHERS = ("#0072B2", "#D55E00", "#009E73")
"""All colours are of the palette by Okabe and Ito, which suits every kind of colour vision."""
MARKERS = "osD^v<>P"
LOOK: dict[Any, Any] = {
    "svg.hashsalt": "palimpsest",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#e5e7eb",
    "figure.facecolor": CARD,
    "savefig.facecolor": CARD,
}


def save(chart: Chart, directory: Path) -> Path:
    """Draw the chart into a file in `directory`, which must exist, and return its path."""
    path = directory / f"{chart.name}.svg"
    with mpl.rc_context(LOOK):
        figure = draw(chart)
        metadata = {
            "Date": None,
            "Creator": "python -m benchmarks.charts",
            "Title": chart.title,
            "Description": json.dumps(asdict(chart)),
        }
        figure.savefig(path, format="svg", metadata=metadata)
    path.write_text("\n".join(line.rstrip() for line in path.read_text().splitlines()) + "\n")
    return path


def draw(chart: Chart) -> Figure:
    height = 4.2 if chart.kind is not Kind.INTERVALS else 4.6
    figure = Figure(figsize=(9, height))
    figure.text(0.02, 0.955, chart.title, fontsize=13, fontweight="bold", va="top")
    figure.text(0.02, 0.885, chart.measured, fontsize=8, color=FAINT, va="top")
    panels = figure.subplots(1, len(chart.panels), sharey=chart.kind is Kind.INTERVALS, squeeze=False)[0]
    left, top = (0.165, 0.72) if chart.kind is Kind.INTERVALS else (0.09, 0.77)
    figure.subplots_adjust(left=left, right=0.975, top=top, bottom=0.13, wspace=0.12)
    drawers = {Kind.BARS: bars, Kind.LINES: lines, Kind.INTERVALS: intervals}
    for axes, panel in zip(panels, chart.panels, strict=True):
        drawers[chart.kind](axes, chart, panel)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(
        handles, names, loc="upper left", bbox_to_anchor=(0.012, 0.855), ncols=len(names), frameon=False, fontsize=8.5
    )
    return figure


def colours(series: Iterable[Series]) -> Iterator[tuple[Series, str, str]]:
    """Yield each series with its colour and its marker, which are a policy's own in all charts."""
    others, known = iter(OTHERS), list(COLOURS)
    for index, one in enumerate(series):
        if one.name in COLOURS:
            yield one, COLOURS[one.name], MARKERS[known.index(one.name)]
        else:
            yield one, next(others), MARKERS[index]


def bars(axes: Axes, chart: Chart, panel: Panel) -> None:
    groups = list(dict.fromkeys(point.x for series in panel.series for point in series.points))
    if all(isinstance(group, int) for group in groups):
        groups.sort()
    width = 0.86 / len(panel.series)
    for index, (series, colour, _) in enumerate(colours(panel.series)):
        shift = (index - (len(panel.series) - 1) / 2) * width
        at = [groups.index(point.x) + shift for point in series.points]
        axes.bar(at, [point.y for point in series.points], width=0.92 * width, color=colour, label=series.name)
        for position, point in zip(at, series.points, strict=True):
            axes.annotate(
                point.label,
                (position, point.y),
                (0, 2),
                textcoords="offset points",
                ha="center",
                va="bottom",
                fontsize=8,
            )
    axes.set_xticks(range(len(groups)), [str(group) for group in groups])
    axes.margins(x=0.02, y=0.1)
    finish(axes, chart)


def lines(axes: Axes, chart: Chart, panel: Panel) -> None:
    for series, colour, marker in colours(panel.series):
        x, y = [point.x for point in series.points], [point.y for point in series.points]
        axes.errorbar(x, y, yerr=spread(series.points), color=colour, marker=marker, label=series.name, capsize=2)
        for point in series.points:
            axes.annotate(
                point.label,
                (float(point.x), point.y),
                (0, 6),
                textcoords="offset points",
                ha="center",
                color=colour,
                fontsize=8,
            )
    axes.set_xticks(sorted({float(point.x) for series in panel.series for point in series.points}))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.margins(x=0.05, y=0.12)
    finish(axes, chart)


def intervals(axes: Axes, chart: Chart, panel: Panel) -> None:
    used = {point.x for one in chart.panels for series in one.series for point in series.points}
    known = [name for name in COLOURS if name in used]
    for index, (series, colour, marker) in enumerate(colours(panel.series)):
        shift = 0.16 * (2 * index - len(panel.series) + 1)
        for number, point in enumerate(series.points):
            position = known.index(str(point.x)) + shift
            name = series.name if number == 0 else None
            if point.y < chart.start:
                note = f"◀ {point.y:.1f} %"
                axes.annotate(
                    note, (chart.start, position), (4, 0), textcoords="offset points", va="center", color=colour
                )
                continue
            ends = spread([point])
            axes.errorbar([point.y], [position], xerr=ends, color=colour, marker=marker, capsize=3, ls="", label=name)
    axes.set_yticks(range(len(known)), known)
    axes.set_ylim(len(known) - 0.5, -0.5)
    axes.set_xlim(chart.start, 100)
    axes.set_xlabel(chart.y_label)
    axes.grid(axis="x")
    axes.set_title(panel.title, fontsize=10, loc="left")


def spread(points: Iterable[Point]) -> list[list[float]] | None:
    """Return the distances to the intervals' ends, or None if the points have no interval."""
    ends = [(one.y - one.low, one.high - one.y) for one in points if one.low is not None and one.high is not None]
    return [[low for low, _ in ends], [high for _, high in ends]] if ends else None


def finish(axes: Axes, chart: Chart) -> None:
    axes.set_ylim(bottom=chart.start)
    axes.set_xlabel(chart.x_label)
    axes.set_ylabel(chart.y_label)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.grid(axis="y")
    if chart.bound:
        axes.axhline(chart.bound.y, color=INK, lw=1, ls="--", label=f"{chart.bound.label}: {chart.bound.y:g}")
