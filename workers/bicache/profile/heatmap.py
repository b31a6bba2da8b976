"""Draws a profile as a heat map by layer and ratio, coloured by the agreement under reuse."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from workers.bicache.depth import DepthTable
from workers.bicache.profile import Profile

WIDTH = 8


def heatmap(profile: Profile) -> Table:
    """Build a table with one row a layer and one column a bucket of ratios.

    A cell shows the similarity of the layer's K/V, and the fraction of tokens that stay when all layers up to this one
    are reused. Cells within the table's depth are marked.
    """
    safe = DepthTable(profile.table)
    table = Table(title="K/V similarity | tokens kept, * = safe", padding=(0, 0), show_lines=False)
    table.add_column("layer", justify="right")
    for bucket in profile.buckets:
        table.add_column(f"{bucket.ratio} %", justify="center", min_width=2 * WIDTH)
    num_layers = len(profile.buckets[0].similarity) if profile.buckets else 0
    for layer in range(num_layers):
        cells = []
        for bucket in profile.buckets:
            kept = bucket.agreement[layer + 1]
            mark = "*" if layer < safe.lookup(bucket.ratio) else " "
            left = Text(f"{bucket.similarity[layer]:.3f}".center(WIDTH), style=colour(bucket.similarity[layer]))
            cells.append(left + Text(f"{kept:.3f}{mark}".center(WIDTH), style=colour(kept)))
        table.add_row(str(layer), *cells)
    return table


def colour(fraction: float) -> str:
    """Return a style that runs from red at 0.5 and below, through yellow, to green at 1."""
    level = min(1.0, max(0.0, 2 * (fraction - 0.5)))
    return f"black on rgb({round(255 * min(1, 2 * (1 - level)))},{round(215 * min(1, 2 * level))},80)"


def save_heatmap(profile: Profile, path: Path) -> None:
    """Write the picture as SVG."""
    console = Console(record=True, file=StringIO(), width=20 + 2 * (WIDTH + 1) * max(1, len(profile.buckets)))
    console.print(heatmap(profile))
    console.save_svg(str(path), title="reuse depth profile")
