"""`python -m workers.bicache.profile MODEL` measures a bundled model's depth table on its own data."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from tokenizers import Tokenizer

from workers.bicache.cut import cut_length
from workers.bicache.profile import ProfileConfig, ProfileSample
from workers.bicache.profile.report import profile_directory
from workers.config import BiCacheConfig
from workers.models.bundle import model_directory
from workers.models.factbook.people import MAX_PEOPLE, MIN_PEOPLE, Split
from workers.models.factbook.samples import CANVAS, SampleWriter

SHEET_SIZES = ((MIN_PEOPLE, 2 * CANVAS), (2 * MIN_PEOPLE, CANVAS), (MAX_PEOPLE, CANVAS), (MAX_PEOPLE, CANVAS))
"""Largest sheet and length of the canvas, in turn: small sheets with long canvases have the low ratios."""
MAX_TURNS = 4
PROFILE_CONFIG = ProfileConfig(agreement=0.999)
"""An answer is right or wrong as a whole, so that one token in a hundred would cost some points of exact match."""


def fact_sheets(directory: Path, num_samples: int, seed: int) -> Iterator[ProfileSample]:
    """Draw turns of conversations about sheets of the training split, since the evaluation split must stay unseen.

    Half of them are the first of their conversation.
    """
    writer = SampleWriter(Tokenizer.from_file(str(directory / "tokenizer.json")), seed, Split.TRAIN)
    for number, (max_people, canvas) in zip(range(num_samples), cycle(SHEET_SIZES), strict=False):
        num_turns = 1 if number // len(SHEET_SIZES) % 2 == 0 else 2 + number % (MAX_TURNS - 1)
        turn = writer.draw_conversation(num_turns, max_people)[-1]
        cut = cut_length(turn.boundaries, BiCacheConfig.cut_share)
        yield ProfileSample(tuple(turn.token_ids), cut, canvas, has_later_turns=cut < turn.boundaries[-1])


def main(
    model: Annotated[str, typer.Argument(help="A bundled model's name, or its directory")],
    output: Annotated[
        Path | None, typer.Option(show_default="beside the weights", help="Directory to write to")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Number of prompts to measure")] = 100,
    seed: Annotated[int, typer.Option(help="Seed of the data generator")] = 1,
    jobs: Annotated[int, typer.Option(min=1, help="Processes that share the prompts")] = 1,
) -> None:
    """Profile a factbook model on questions about sheets of its training split."""
    directory = model_directory(model)
    sheets = list(fact_sheets(directory, samples, seed))
    profile_directory(
        directory, sheets, output or directory, config=PROFILE_CONFIG, console=Console(), num_processes=jobs
    )


if __name__ == "__main__":
    typer.run(main)
