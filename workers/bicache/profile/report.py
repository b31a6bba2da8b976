"""Profiles a model directory with a progress bar, and writes the table and the heat map."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import cache
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from workers.bicache.profile import Measurement, Profile, ProfileConfig, ProfileSample, measure, profile
from workers.bicache.profile.heatmap import heatmap, save_heatmap
from workers.errors import InvalidRequestError
from workers.models.loader import LoadedModel, load_model

TABLE_FILE, PICTURE_FILE = "depth_table.json", "depth_table.svg"
CHUNK = 4
"""Samples that a process measures before it reports."""

Map = Callable[..., Iterator[Any]]


def profile_directory(
    directory: Path,
    samples: Sequence[ProfileSample],
    output: Path,
    *,
    config: ProfileConfig,
    console: Console,
    num_processes: int = 1,
) -> Profile:
    """Measure the model in `directory` in float32, on a GPU if there is one, and write both files to `output`.

    The table takes effect in the model's directory. Raises UnsupportedModelError, and InvalidRequestError for
    samples that exceed the model's context.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loaded = load_once(directory, device)
    longest, room = max(len(sample.token_ids) + sample.canvas for sample in samples), loaded.config.context_length
    if longest > room:
        raise InvalidRequestError(
            f"a conversation takes {longest} tokens with its canvas, and the model's context holds {room}: shorten it, "
            "or lower --canvas"
        )
    chunks = [samples[start : start + CHUNK] for start in range(0, len(samples), CHUNK)]
    measurements: list[Measurement] = []
    with Progress(console=console) as progress, parallel_map(num_processes) as run:
        task = progress.add_task(f"{loaded.name} on {device}", total=len(chunks))
        for measured in run(measure_chunk, repeat(directory), repeat(device), chunks):
            measurements += measured
            progress.advance(task)
    made = profile(measurements, config)
    made.save(output / TABLE_FILE)
    save_heatmap(made, output / PICTURE_FILE)
    console.print(heatmap(made))
    console.print(f"reuse depths by ratio: {made.table}; by the published rule: {made.published_table}")
    return made


@cache
def load_once(directory: Path, device: torch.device) -> LoadedModel:
    """Load the model once in each process."""
    return load_model(directory, device=device, dtype=torch.float32)


def measure_chunk(directory: Path, device: torch.device, samples: Sequence[ProfileSample]) -> list[Measurement]:
    return list(measure(load_once(directory, device).model, samples, device))


@contextmanager
def parallel_map(count: int) -> Iterator[Map]:
    """Yield `map`, or its equivalent over `count` processes of one thread each."""
    if count == 1:
        yield map
        return
    with ProcessPoolExecutor(count, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        yield pool.map
