"""`python -m workers.bicache.profile MODEL`: write depth_table.json for a bundled model, from its own data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.progress import Progress
from tokenizers import Tokenizer

from workers.bicache.profile import ProfileConfig, ProfileSample, profile_model
from workers.models.bundle import model_directory
from workers.models.factbook.people import Split
from workers.models.factbook.samples import CANVAS, SampleWriter
from workers.models.loader import load_model

CANVASES = (CANVAS, CANVAS, 2 * CANVAS, 4 * CANVAS)
"""Canvas lengths taken in turn: longer ones make for smaller ratios."""


def fact_sheets(directory: Path, count: int, seed: int) -> Iterator[ProfileSample]:
    """Questions about sheets of the training split: the evaluation split stays unseen."""
    writer = SampleWriter(Tokenizer.from_file(str(directory / "tokenizer.json")), seed, Split.TRAIN)
    for index in range(count):
        sample = writer.draw(1)
        canvas = CANVASES[index % len(CANVASES)]
        yield ProfileSample((*sample.prefix, *sample.suffixes[0]), len(sample.prefix), canvas)


def main(
    model: Annotated[str, typer.Argument(help="A bundled model's name, or its directory")],
    samples: Annotated[int, typer.Option(min=1, help="Prompts to measure")] = 200,
    seed: Annotated[int, typer.Option(help="Seed of the data generator")] = 1,
) -> None:
    """Profile a factbook model, and put the table beside its weights."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    directory = model_directory(model)
    loaded = load_model(directory, device=device, dtype=torch.float32)
    with Progress() as progress:
        task = progress.add_task(f"{loaded.name} on {device}", total=samples)
        made = profile_model(
            loaded.model,
            fact_sheets(directory, samples, seed),
            ProfileConfig(),
            device=device,
            on_sample=lambda: progress.advance(task),
        )
    made.save(directory / "depth_table.json")
    typer.echo(f"reuse depths by ratio: {made.table}; by the published rule: {made.published_table}")


if __name__ == "__main__":
    typer.run(main)
