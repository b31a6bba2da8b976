"""Measures how fast each cache policy decodes, warm, on one machine.

A bundled model answers its own questions by policy, batch and prefix ratio. All requests of a batch share one prefix;
where the policy keeps it, an earlier request has built its entry.

Published dimensions with random weights, or a bundled model with --rooflines, are compared with the device's limits by
policy, prefix length, batch and number of prefixes. Several runs may measure that grid in parts.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.progress import Progress
from tokenizers import Tokenizer

from benchmarks.costs import COST
from benchmarks.dimensions import DIMENSIONS, check_device, load_or_randomize
from benchmarks.drive import Platform, drive
from benchmarks.grid import QUICK, Grid, Sharing
from benchmarks.load import Durations
from benchmarks.parts import Parts, PartsError
from benchmarks.report import Bar, Report, Row
from benchmarks.rooflines import Rooflines, judge
from cache_service.core.hashing import prefix_keys
from workers.api import DecodingParams, GenerateRequest, PrefixCandidate
from workers.models.bundle import model_directory
from workers.models.factbook.samples import CANVAS, Sample, evaluation_samples
from workers.models.loader import LoadedModel

NUM_STEPS = 16
BAR_RATIO, BAR_BATCH, BAR_SPEEDUP = 80, 8, 3.0
POLICIES = ("dual", "bicache", "bicache-dual", "lean")
"""Policies that follow `none`."""


@dataclass(frozen=True)
class Workload:
    """A workload is `batch` questions behind one prefix that is `ratio` percent of each request."""

    batch: int
    ratio: int


@dataclass(frozen=True)
class Timing:
    """Holds the fastest of one policy's runs under one workload, since the machine's noise only adds time."""

    elapsed_s: float
    num_steps: int
    num_forwards: int
    canvas_tokens: int
    answer_tokens: int
    peak_bytes: int


class Bench:
    """Times one loaded model on the prompts that every policy gets."""

    def __init__(self, name: str, platform: Platform) -> None:
        self._platform = platform
        self._loaded: LoadedModel = platform.load(name)
        tokenizer = Tokenizer.from_file(str(model_directory(name) / "tokenizer.json"))
        self._samples: list[Sample] = list(evaluation_samples(tokenizer, 64))

    def time(self, policy: str, workload: Workload, repeats: int) -> Timing:
        engine = self._platform.build_engine(self._loaded, batch=workload.batch)
        drive(engine, self._requests(policy, Workload(1, workload.ratio), "warm-up"))
        best: Timing | None = None
        for repeat in range(repeats):
            peak_pages, num_steps, before = 0, 0, engine.stats()

            def observe() -> None:
                nonlocal peak_pages, num_steps
                peak_pages, num_steps = max(peak_pages, engine.num_used_pages), num_steps + 1

            self._platform.synchronize()
            started = time.perf_counter()
            answers = drive(engine, self._requests(policy, workload, str(repeat)), on_step=observe)
            self._platform.synchronize()
            timing = Timing(
                elapsed_s=time.perf_counter() - started,
                num_steps=num_steps,
                num_forwards=sum(answer.usage.num_forwards for answer in answers),
                canvas_tokens=engine.stats().num_canvas_tokens - before.num_canvas_tokens,
                answer_tokens=sum(answer.usage.completion_tokens for answer in answers),
                peak_bytes=peak_pages * engine.page_bytes,
            )
            best = timing if best is None or timing.elapsed_s < best.elapsed_s else best
        assert best is not None
        return best

    def rows(self, progress: Progress, *, quick: bool) -> Iterator[Row]:
        loads = [Workload(batch, ratio) for batch in (1, 8, 16) for ratio in (50, 80, 90)]
        for workload in progress.track([Workload(BAR_BATCH, BAR_RATIO)] if quick else loads):
            baseline = self.time("none", workload, repeats=2)
            yield row("none", workload, baseline, baseline)
            for name in POLICIES:
                yield row(name, workload, self.time(name, workload, repeats=2), baseline)

    def _requests(self, policy: str, workload: Workload, label: str) -> Iterator[GenerateRequest]:
        """Yield the sheets' questions behind a prefix that has the ratio's length."""
        question = self._samples[0].suffixes[0]
        num_prefix = round((len(question) + CANVAS) * workload.ratio / (100 - workload.ratio))
        pool = [token for sample in self._samples for token in sample.prefix]
        params = DecodingParams(num_steps=NUM_STEPS, block_length=CANVAS, policy=policy)
        for index in range(workload.batch):
            token_ids = (*pool[:num_prefix], *self._samples[index % len(self._samples)].suffixes[0])
            [key] = prefix_keys(self._loaded.fingerprint, "", token_ids, [num_prefix])
            yield GenerateRequest(f"{label}-{index}", token_ids, CANVAS, (PrefixCandidate(num_prefix, key),), params)


def row(policy: str, workload: Workload, timing: Timing, baseline: Timing) -> Row:
    """Return one line of the table; `speedup` is that of canvas tokens a second over policy `none`."""
    speed = timing.canvas_tokens / timing.elapsed_s
    return {
        "policy": policy,
        "batch": workload.batch,
        "ratio": workload.ratio,
        "canvas_tokens_per_s": speed,
        "answer_tokens_per_s": timing.answer_tokens / timing.elapsed_s,
        "tokens_per_forward": timing.canvas_tokens / timing.num_forwards,
        "ms_per_step": 1000 * timing.elapsed_s / timing.num_steps,
        "forwards_saved": baseline.num_forwards - timing.num_forwards,
        "peak_mib": timing.peak_bytes / (1 << 20),
        "speedup": speed / (baseline.canvas_tokens / baseline.elapsed_s),
    }


def bars(rows: Sequence[Row]) -> list[Bar]:
    """Compare `lean` with `none` where prefixes are long and requests many."""
    name = f"lean: canvas tokens/s against none at ratio 0.{BAR_RATIO // 10}, batch {BAR_BATCH}"
    return [
        Bar(name, found["speedup"], ">=", BAR_SPEEDUP)
        for found in rows
        if (found["policy"], found["batch"], found["ratio"]) == ("lean", BAR_BATCH, BAR_RATIO)
    ]


def questions(model: str, platform: Platform, *, quick: bool, device: str) -> Iterator[Report]:
    """Time the bundled model on its own questions, and yield a report after each row."""
    rows: list[Row] = []
    with Progress(transient=True) as progress:
        for found in Bench(model, platform).rows(progress, quick=quick):
            rows.append(found)
            yield Report("engine", rows, bars(rows), device)


def rooflines_of(
    loaded: LoadedModel, platform: Platform, grid: Grid, durations: Durations, parts: Parts
) -> Iterator[Report]:
    """Measure the workloads that earlier parts lack, and yield a report of all parts after each row."""
    measured: list[Row] = []
    workloads = list(grid.missing(loaded.name, parts))
    if not workloads:
        return
    with Progress(transient=True) as progress:
        bench = Rooflines(loaded, platform, max_batch=max(grid.batch))
        for found in bench.rows(workloads, durations, progress):
            measured.append(found)
            rows = parts.join(measured)
            yield Report("engine", rows, list(judge(rows)), parts.device, parts.origins(rows))


def main(
    quick: Annotated[
        bool, typer.Option("--quick", help="Measure the bars' workload alone, under 45 s on 2 cores.")
    ] = False,
    json: Annotated[Path | None, typer.Option(help="Write the results to this file.")] = None,
    model: Annotated[
        str, typer.Option(help=f"A bundled model, or published dimensions: {', '.join(DIMENSIONS)}.")
    ] = "factbook",
    device: Annotated[str, typer.Option(help="Device: cpu or cuda.")] = "cuda" if torch.cuda.is_available() else "cpu",
    dtype: Annotated[str | None, typer.Option(help="Type: by default float32 on a CPU and bfloat16 on a GPU.")] = None,
    rooflines: Annotated[
        bool, typer.Option("--rooflines", help="Compare a bundled model with its roofline, as dimensions always are.")
    ] = False,
    prefix: Annotated[list[int] | None, typer.Option(help="Rooflines: number of tokens of a prefix.")] = None,
    batch: Annotated[list[int] | None, typer.Option(help="Rooflines: number of requests at a time.")] = None,
    prefixes: Annotated[list[Sharing] | None, typer.Option(help="Rooflines: number of prefixes of a batch.")] = None,
    policy: Annotated[list[str] | None, typer.Option(help=f"Rooflines: policies among {', '.join(COST)}.")] = None,
    append: Annotated[
        bool, typer.Option("--append", help="Rooflines: continue the report of --json with the rows that it lacks.")
    ] = False,
    seconds: Annotated[
        float, typer.Option(help="Rooflines: seconds for which each row is watched.")
    ] = Durations().watch_s,
    warm_up: Annotated[float, typer.Option(help="Rooflines: seconds of warm-up at most.")] = Durations().warm_up_s,
) -> None:
    """Measure canvas tokens a second by policy, batch and prefix, as a table and JSON."""
    check_device(model, device)
    platform = Platform.of(device, dtype)
    device_name = platform.device_name
    picked = {"prefix": prefix, "batch": batch, "prefixes": prefixes, "policy": policy}
    chosen: dict[str, Any] = {name: tuple(values) for name, values in picked.items() if values}
    if rooflines or model in DIMENSIONS:
        if unknown := [name for name in policy or () if name not in COST]:
            raise typer.BadParameter(
                f"{unknown[0]!r} is unknown; choose among {', '.join(COST)}", param_hint="--policy"
            )
        if append and not json:
            raise typer.BadParameter("needs --json, the file of the report to continue", param_hint="--append")
        try:
            parts = Parts.read(json, device_name) if append and json else Parts(device_name)
        except PartsError as error:
            raise typer.BadParameter(str(error), param_hint="--append") from error
        loaded = load_or_randomize(model, platform)
        grid = replace(QUICK if quick else Grid(), **chosen)
        check_fits(grid, loaded)
        found = rooflines_of(loaded, platform, grid, Durations(seconds, warm_up), parts)
    elif chosen or append:
        name = next(iter(chosen), "append")
        raise typer.BadParameter("is for --rooflines, or dimensions", param_hint=f"--{name}")
    else:
        found = questions(model, platform, quick=quick, device=device_name)
    report = None
    for report in found:
        if json:  # keeps what an interrupted run has measured
            report.write(json)
    if report is None:
        typer.echo(f"{json} has all rows already")
    else:
        report.print()


def check_fits(grid: Grid, loaded: LoadedModel) -> None:
    for workload in grid.workloads():
        if workload.prefix + workload.suffix > loaded.config.context_length:
            raise typer.BadParameter(
                f"a prefix of {workload.prefix} tokens and {workload.suffix} behind it exceed {loaded.name}'s context "
                f"of {loaded.config.context_length}",
                param_hint="--prefix",
            )


if __name__ == "__main__":
    typer.run(main)
