"""Measures the parts of a step under policy `lean`, for all requests inside their blocks and for one block start.

The load is the engine benchmark's: requests behind one prefix come as fast as they are served. Once it is steady, the
benchmark repeats the passes that the scheduler plans without committing them, so that each run does the same. Host gaps
are the rest of a step, in which a GPU runs no kernel and a CPU none of torch's operations.
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

from benchmarks.dimensions import DIMENSIONS, check_device, load_or_randomize
from benchmarks.drive import POLICIES, Platform
from benchmarks.load import ConstantLoad, Workload
from benchmarks.report import Report, Row
from benchmarks.rooflines import MAX_HEAVY_ROWS
from benchmarks.timeline import GAPS, HEAD, LAYER, STEP, Event, split
from workers.config import BiCacheConfig, KVConfig
from workers.engine.engine import Engine
from workers.models.base import DiffusionLM, Layer, ModelConfig
from workers.models.bundle import bundled_models
from workers.models.loader import LoadedModel
from workers.scheduler.plan import ScheduledPass, StepPlan

WHOLE = "whole step"
INSIDE, OPENING = "inside blocks", "block start"


class MarkedLayer:
    """Implements `workers.models.base.Layer`, and marks its work in a profile."""

    def __init__(self, layer: Layer) -> None:
        self._layer = layer

    def qkv(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with record_function(LAYER):
            return self._layer.qkv(x, cos, sin)

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        with record_function(LAYER):
            return self._layer.finish(x, attended)


class MarkedModel:
    """Implements `workers.models.base.DiffusionLM`, and marks its layers and head in a profile."""

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
class StepKind:
    """Holds the passes of one kind of step, which are repeated."""

    step: str
    passes: tuple[ScheduledPass, ...]

    @property
    def num_rows(self) -> int:
        return sum(scheduled.num_rows for scheduled in self.passes)

    def columns(self) -> Row:
        return {"step": self.step, "requests": len(self.passes), "rows": self.num_rows}


class Bench:
    """Measures one model on one device, under one load."""

    def __init__(self, loaded: LoadedModel, platform: Platform, workload: Workload) -> None:
        self._platform = replace(platform, max_heavy_rows=MAX_HEAVY_ROWS, kv=KVConfig())
        self._workload = workload
        marked = replace(loaded, model=MarkedModel(loaded.model))
        self._engine: Engine = self._platform.build_engine(
            marked, batch=workload.batch, bicache=BiCacheConfig(probe_positions=0)
        )
        list(self._engine.warm_up())
        self._load = ConstantLoad(self._engine, loaded.config.vocab_size, workload, POLICIES["lean"])

    def rows(self, repeats: int, progress: Progress) -> Iterator[Row]:
        for kind in progress.track(self._kinds(), total=2):
            yield from self._rows(kind, repeats)

    def _kinds(self) -> Iterator[StepKind]:
        """Yield the passes inside blocks once every request has begun, and the first block start after that."""
        for _ in range(self._workload.batch + 2):
            self._load.step()
        missing = {INSIDE, OPENING}
        while missing:
            self._load.fill()
            passes = self._engine.scheduler.schedule().passes
            opening = [scheduled for scheduled in passes if scheduled.sequence.step == 0][:1]
            inside = [scheduled for scheduled in passes if scheduled.sequence.step > 0]
            for step, found in ((INSIDE, inside), (OPENING, opening)):
                if found and step in missing:
                    missing.remove(step)
                    yield StepKind(step, tuple(found))
            self._load.step()

    def _rows(self, kind: StepKind, repeats: int) -> Iterator[Row]:
        on_device = self._platform.device.type == "cuda"
        plan = StepPlan(passes=kind.passes)

        def run() -> None:
            self._engine.runner.run(plan)
            self._platform.synchronize()

        run()
        plain_ms = 1000 * median(timed(run) for _ in range(repeats))
        found = split(profile_steps(run, repeats, on_device=on_device), on_device=on_device)
        # A profiler slows launches down, not kernels; on a CPU it slows both.
        wall_ms = plain_ms if on_device else found.wall_ms
        yield {**kind.columns(), "part": WHOLE, "ms": wall_ms, "share": 1.0, "without_profiler_ms": plain_ms}
        for part, ms in {**found.ms, GAPS: wall_ms - found.busy_ms}.items():
            launches = found.launches.get(part, 0.0)
            yield {**kind.columns(), "part": part, "ms": ms, "share": ms / wall_ms, "launches": launches}


def timed(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def profile_steps(run: Callable[[], object], repeats: int, *, on_device: bool) -> Sequence[Event]:
    """Return the trace of `repeats` steps, after an unmarked one in which the profiler warms up."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_device else [])]
    with profile(activities=activities, acc_events=True) as trace:
        run()
        for _ in range(repeats):
            with record_function(STEP):
                run()
    with TemporaryDirectory() as directory:
        path = Path(directory) / "trace.json"
        trace.export_chrome_trace(str(path))
        events: Sequence[Event] = jsonlib.loads(path.read_text())["traceEvents"]
    return events


def main(
    quick: Annotated[
        bool, typer.Option("--quick", help="Measure few repeats of a small load, under 45 s on 2 cores.")
    ] = False,
    json: Annotated[Path | None, typer.Option(help="Write the results to this file.")] = None,
    model: Annotated[
        str, typer.Option(help=f"A bundled model, or published dimensions: {', '.join(DIMENSIONS)}.")
    ] = "factbook",
    device: Annotated[str, typer.Option(help="Device: cpu or cuda.")] = "cuda" if torch.cuda.is_available() else "cpu",
    dtype: Annotated[str | None, typer.Option(help="Type: by default float32 on a CPU and bfloat16 on a GPU.")] = None,
    prefix: Annotated[
        int | None, typer.Option(help="Number of tokens of the prefix; by default half of the model's context.")
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Number of requests at a time (16; 4 with --quick).")] = None,
    repeats: Annotated[int | None, typer.Option(help="Number of runs of each step (20; 5 with --quick).")] = None,
) -> None:
    """Measure the milliseconds of a step by part, as a table and JSON."""
    check_device(model, device)
    platform = Platform.of(device, dtype)
    loaded = load_or_randomize(model, platform)
    workload = Workload(
        prefix or loaded.config.context_length // 2,
        batch or (4 if quick else 16),
        1,
        ends_early=model in bundled_models(),
    )
    with Progress(transient=True) as progress:
        bench = Bench(loaded, platform, workload)
        rows = [
            {"model": model, "prefix": workload.prefix, **row}
            for row in bench.rows(repeats or (5 if quick else 20), progress)
        ]
    report = Report("step_profile", rows, [], platform.device_name)
    report.print()
    if json:
        report.write(json)


if __name__ == "__main__":
    typer.run(main)
