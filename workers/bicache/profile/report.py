"""Profile a model directory, with a progress bar, and write the table and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress

from workers.bicache.profile import Profile, ProfileConfig, ProfileSample, profile_model
from workers.bicache.profile.heatmap import heatmap, save_heatmap
from workers.errors import InvalidRequestError
from workers.models.loader import load_model

TABLE_FILE, PICTURE_FILE = "depth_table.json", "depth_table.svg"


def profile_directory(
    directory: Path, samples: Sequence[ProfileSample], output: Path, *, config: ProfileConfig, console: Console
) -> Profile:
    """Measure the model in `directory` in float32 on this machine, and write both files to `output`.

    The table takes effect where it lies beside the weights. Raises UnsupportedModelError, and InvalidRequestError for
    samples that the model's context doesn't hold.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loaded = load_model(directory, device=device, dtype=torch.float32)
    longest, room = max(len(sample.token_ids) + sample.canvas for sample in samples), loaded.config.context_length
    if longest > room:
        raise InvalidRequestError(
            f"a conversation takes {longest} tokens with its canvas, and the model's context holds {room}: shorten it, "
            "or lower --canvas"
        )
    with Progress(console=console) as progress:
        task = progress.add_task(f"{loaded.name} on {device}", total=len(samples))
        made = profile_model(loaded.model, samples, config, device=device, on_sample=lambda: progress.advance(task))
    made.save(output / TABLE_FILE)
    save_heatmap(made, output / PICTURE_FILE)
    console.print(heatmap(made))
    console.print(f"reuse depths by ratio: {made.table}; by the published rule: {made.published_table}")
    return made
