"""Where the time of one step goes, under policy `lean`: all requests that are inside their blocks, and one block start.

The load is the engine benchmark's: requests behind one prefix that come as fast as they are served. Once it is in its
stride, the passes that the scheduler plans are run again and again without being committed, so that each run does the
same. Host gaps are what is left of a step: on a GPU while no kernel runs, on a CPU outside of torch's operations.
"""

from __future__ import annotations

import json as jsonlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Annotated

import torch
import typer
from rich.progress import Progress
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.dimensions import DIMENSIONS, check_device, loaded_at
from benchmarks.drive import POLICIES, Place
from benchmarks.load import ConstantLoad, Workload
from benchmarks.report import Report, Row
from benchmarks.rooflines import MAX_HEAVY_ROWS
from benchmarks.timeline import GAPS, HEAD, LAYER, STEP, Event, split
from workers.config import BiCacheConfig, KVConfig
from workers.engine.engine import Engine
from workers.models.base import DiffusionLM, Layer, ModelConfig
from workers.models.loader import LoadedModel
from workers.scheduler.plan import StepPlan, Turn

WHOLE = "whole step"
INSIDE, OPENING = "inside blocks", "block start"


class MarkedLayer:
    """Implements `workers.models.base.Layer`; its work is marked in a profile."""

    def __init__(self, layer: Layer) -> None:
        self._layer = layer

    def qkv(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with record_function(LAYER):
            return self._layer.qkv(x, cos, sin)

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        with record_function(LAYER):
            return self._layer.finish(x, attended)


class MarkedModel:
    """Implements `workers.models.base.DiffusionLM`; layers and head are marked in a profile."""

    def __init__(self, model: DiffusionLM) -> None:
        self._model = model
        self._stack = [MarkedLayer(layer) for layer in model.stack]

    @property
    def config(self) -> ModelConfig:
        return self._model.config

    @property
    def stack(self) -> Sequence[Layer]:
        return self._stack

    def embed(self, token_ids: Tensor) -> Tensor:
        return self._model.embed(token_ids)

    def rope(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        return self._model.rope(positions)

    def logits(self, x: Tensor) -> Tensor:
        with record_function(HEAD):
            return self._model.logits(x)


@dataclass(frozen=True)
class Passes:
    """What is run again and again."""

    step: str
    turns: tuple[Turn, ...]

    @property
    def num_rows(self) -> int:
        return sum(turn.num_rows for turn in self.turns)

    def described(self) -> Row:
        return {"step": self.step, "requests": len(self.turns), "rows": self.num_rows}


class Bench:
    """One model on one device, under one load."""

    def __init__(self, loaded: LoadedModel, place: Place, workload: Workload) -> None:
        self._place = replace(place, max_heavy_rows=MAX_HEAVY_ROWS, kv=KVConfig())
        self._workload = workload
        marked = replace(loaded, model=MarkedModel(loaded.model))
        self._engine: Engine = self._place.engine(
            marked, batch=workload.batch, bicache=BiCacheConfig(probe_positions=0)
        )
        list(self._engine.warm_up())
        self._load = ConstantLoad(self._engine, loaded.config.vocab_size, workload, POLICIES["lean"])

    def rows(self, repeats: int, progress: Progress) -> Iterator[Row]:
        for passes in progress.track(self._passes(), total=2):
            yield from self._rows(passes, repeats)

    def _passes(self) -> Iterator[Passes]:
        """The passes inside blocks once every request has begun, and the first block start after that."""
        for _ in range(self._workload.batch + 2):
            self._load.step()
        wanted = {INSIDE, OPENING}
        while wanted:
            self._load.fill()
            turns = self._engine.scheduler.schedule().turns
            opening = [turn for turn in turns if turn.sequence.step == 0][:1]
            inside = [turn for turn in turns if turn.sequence.step > 0]
            for step, found in ((INSIDE, inside), (OPENING, opening)):
                if found and step in wanted:
                    wanted.remove(step)
                    yield Passes(step, tuple(found))
            self._load.step()

    def _rows(self, passes: Passes, repeats: int) -> Iterator[Row]:
        on_device = self._place.device.type == "cuda"
        plan = StepPlan(turns=passes.turns)

        def run() -> None:
            self._engine.runner.run(plan)
            self._place.synchronize()

        run()
        plain_ms = 1000 * median(timed(run) for _ in range(repeats))
        found = split(profiled(run, repeats, on_device=on_device), on_device=on_device)
        # A profiler slows launches down, not kernels; on a CPU it slows both.
        wall_ms = plain_ms if on_device else found.wall_ms
        yield {**passes.described(), "part": WHOLE, "ms": wall_ms, "share": 1.0, "without_profiler_ms": plain_ms}
        for part, ms in {**found.ms, GAPS: wall_ms - found.busy_ms}.items():
            launches = found.launches.get(part, 0.0)
            yield {**passes.described(), "part": part, "ms": ms, "share": ms / wall_ms, "launches": launches}


def timed(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def profiled(run: Callable[[], object], repeats: int, *, on_device: bool) -> Sequence[Event]:
    """The trace of that many steps; a first one, in which the profiler itself warms up, isn't marked as a step."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_device else [])]
    with profile(activities=activities, acc_events=True) as seen:
        run()
        for _ in range(repeats):
            with record_function(STEP):
                run()
    with TemporaryDirectory() as directory:
        path = Path(directory) / "trace.json"
        seen.export_chrome_trace(str(path))
        events: Sequence[Event] = jsonlib.loads(path.read_text())["traceEvents"]
    return events


def main(
    quick: Annotated[bool, typer.Option("--quick", help="Few repeats of a small load: under 45 s on 2 cores.")] = False,
    json: Annotated[Path | None, typer.Option(help="Write the results to this file.")] = None,
    model: Annotated[str, typer.Option(help=f"A bundled model, or dimensions: {', '.join(DIMENSIONS)}.")] = "factbook",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cuda" if torch.cuda.is_available() else "cpu",
    dtype: Annotated[str | None, typer.Option(help="float32 or bfloat16; by default the CPU's and the GPU's.")] = None,
    prefix: Annotated[int | None, typer.Option(help="Tokens; by default half of the model's context.")] = None,
    batch: Annotated[int | None, typer.Option(help="Requests at a time (16; 4 with --quick).")] = None,
    repeats: Annotated[int | None, typer.Option(help="Runs of each step (20; 5 with --quick).")] = None,
) -> None:
    """Milliseconds of a step by part, as a table and JSON."""
    check_device(model, device)
    place = Place.at(device, dtype)
    loaded = loaded_at(model, place)
    workload = Workload(prefix or loaded.config.context_length // 2, batch or (4 if quick else 16), 1)
    with Progress(transient=True) as progress:
        bench = Bench(loaded, place, workload)
        rows = [
            {"model": model, "prefix": workload.prefix, **row}
            for row in bench.rows(repeats or (5 if quick else 20), progress)
        ]
    report = Report("step_profile", rows, [], place.device_name)
    report.print()
    if json:
        report.write(json)


if __name__ == "__main__":
    typer.run(main)
