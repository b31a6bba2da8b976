"""`python -m benchmarks.charts` draws the charts of docs/performance.md from the committed results."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.charts.data import SOURCES
from benchmarks.charts.drawing import save
from benchmarks.report import ROOT


def main(
    results: Annotated[
        Path, typer.Option(exists=True, file_okay=False, help="Directory of the benchmarks' JSON files.")
    ] = ROOT / "benchmarks" / "results",
    out: Annotated[Path, typer.Option(file_okay=False, help="Directory to write the SVG files to.")] = ROOT
    / "docs"
    / "charts",
) -> None:
    """Draw every chart whose results exist."""
    out.mkdir(parents=True, exist_ok=True)
    for source in SOURCES:
        if absent := [name for name in source.files if not (results / name).exists()]:
            typer.echo(f"skipped {source.chart.__name__}: {results} lacks {', '.join(absent)}", err=True)
        else:
            typer.echo(save(source.read(results), out))


if __name__ == "__main__":
    typer.run(main)
