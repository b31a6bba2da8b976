"""Measures how close an engine comes to its device's limits, while requests come as fast as they are served.

Every policy runs on the same kernels in the same process, next to the two ceilings: copying memory and multiplying
matrices. With random weights a probe would find no similarity between cached and fresh states, so that the depth table
applies as it is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from statistics import median

import torch
from rich.progress import Progress
from torch.utils.benchmark import Timer

from benchmarks.costs import COST, Costs, Request
from benchmarks.dimensions import weight_bytes
from benchmarks.drive import POLICIES, Platform
from benchmarks.grid import BAR_PREFIX
from benchmarks.load import ConstantLoad, Durations, Sample, Workload, watch
from benchmarks.report import Bar, Row
from workers.bicache.depth import DepthTable, ratio_percent
from workers.config import BiCacheConfig, KVConfig
from workers.models.loader import LoadedModel
from workers.scheduler.policy import POLICIES as SCHEDULES

REFRESH_INTERVAL = 16
MAX_HEAVY_ROWS = 4096
NUM_MISSES = 3


@dataclass(frozen=True)
class Ceilings:
    """Holds the device's speeds at the simplest work of each kind."""

    copy_bytes_per_s: float
    """Bytes read plus bytes written."""
    matmul_flops: float


def ceilings(platform: Platform) -> Ceilings:
    """Measure a copy and a matrix product of random values.

    A GPU copies 4 GiB and multiplies 8192-squared matrices in the model's type, a CPU 256 MiB and 1024-squared ones.
    """
    elements, width = (1 << 31, 8192) if platform.device.type == "cuda" else (1 << 27, 1024)
    source = torch.randn(elements, dtype=torch.bfloat16, device=platform.device)
    target = torch.empty_like(source)
    copy_s = seconds(lambda: target.copy_(source), platform.device)
    a, b = torch.randn(2, width, width, device=platform.device).to(platform.dtype)
    matmul_s = seconds(lambda: a @ b, platform.device)
    return Ceilings(2 * source.nbytes / copy_s, 2 * width**3 / matmul_s)


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Return the time of the median run, which a GPU measures by device events."""
    if device.type == "cuda":
        from triton.testing import do_bench

        return float(do_bench(run, return_mode="median")) / 1000
    timer = Timer("run()", globals={"run": run}, num_threads=torch.get_num_threads())
    return float(timer.blocked_autorange().median)


class Rooflines:
    """Measures one model on one device, against its ceilings."""

    def __init__(self, loaded: LoadedModel, platform: Platform, *, max_batch: int) -> None:
        self._platform = replace(platform, max_heavy_rows=MAX_HEAVY_ROWS, kv=KVConfig())
        self._ceilings = ceilings(platform)
        self._loaded = loaded
        self._engine = self._platform.build_engine(loaded, batch=max_batch, bicache=BiCacheConfig(probe_positions=0))
        self._num_misses = 0
        list(self._engine.warm_up())

    def rows(
        self, workloads: Sequence[tuple[Workload, Sequence[str]]], durations: Durations, progress: Progress
    ) -> Iterator[Row]:
        """Yield the ceilings, then a row for each policy that each workload comes with."""
        yield {"policy": "ceiling: copying, GB/s", "ceiling": self._ceilings.copy_bytes_per_s / 1e9}
        yield {"policy": "ceiling: matrix product, TFLOP/s", "ceiling": self._ceilings.matmul_flops / 1e12}
        miss_s = {workload.prefix: self._miss_s(workload.prefix) for workload, _ in workloads}
        task = progress.add_task("", total=sum(len(policies) for _, policies in workloads))
        for workload, policies in workloads:
            for policy in policies:
                progress.update(task, description=f"P={workload.prefix}, batch {workload.batch}: {policy}")
                row = self._row(policy, workload, self._watch(policy, workload, durations), miss_s[workload.prefix])
                yield row
                if policy == "bicache-dual":
                    yield self._as_published(row, workload)
                progress.advance(task)

    def _watch(self, policy: str, workload: Workload, durations: Durations) -> Sample:
        load = ConstantLoad(self._engine, self._loaded.config.vocab_size, workload, POLICIES[policy])
        steps_per_block = workload.num_steps * workload.block // workload.canvas
        warm_steps = 3 if policy == "none" else workload.batch + 2 * steps_per_block
        try:
            return watch(self._engine, self._platform, load, durations, warm_steps=warm_steps)
        finally:
            load.close()

    def _row(self, policy: str, workload: Workload, sample: Sample, miss_s: float) -> Row:
        config = self._loaded.config
        total = workload.prefix + workload.suffix
        depth = DepthTable.for_model(config, self._loaded.depth_table).lookup(ratio_percent(workload.prefix, total))
        request = Request(
            workload.prefix,
            workload.user,
            workload.canvas,
            workload.num_steps,
            workload.block,
            depth,
            REFRESH_INTERVAL,
        )
        flops_per_token = COST[policy](Costs(config, request)) / workload.canvas
        speed = sample.canvas_tokens / sample.elapsed_s
        read_s = weight_bytes(config, self._platform.dtype.itemsize) / self._ceilings.copy_bytes_per_s
        page_tokens = self._platform.kv.page_tokens
        num_running = max(1, sample.num_running)  # between two requests none may run
        suffix_pages = num_running * config.num_layers * -(-workload.suffix // page_tokens)
        copy_pages = num_running * config.num_layers * workload.prefix / page_tokens
        row = {
            **self._identity(policy, workload),
            "running": sample.num_running,
            "canvas_tokens_per_s": speed,
            "ms_per_step": 1000 * sample.elapsed_s / sample.num_steps,
            "median_step_ms": 1000 * sample.step_s,
            "ms_per_forward": 1000 * sample.elapsed_s / sample.num_forwards,
            "tflops": speed * flops_per_token / 1e12,
            "roofline": speed * flops_per_token / self._ceilings.matmul_flops,
            "weight_reads": sample.step_s / read_s,
            "peak_pages_gib": sample.peak_pages * self._engine.page_bytes / (1 << 30),
        }
        if sample.peak_bytes is not None:
            row["peak_gib"] = sample.peak_bytes / (1 << 30)
        schedule = SCHEDULES[POLICIES[policy].policy]
        if schedule.keeps_kv:
            row["prefix_copies"] = (sample.used_pages - suffix_pages) / copy_pages
        if schedule.reuses_prefix:
            row["miss_ms"] = 1000 * miss_s
        return row

    def _identity(self, policy: str, workload: Workload) -> Row:
        return {
            "model": self._loaded.name,
            "policy": policy,
            "prefix": workload.prefix,
            "batch": workload.batch,
            "prefixes": workload.num_prefixes,
        }

    def _as_published(self, row: Row, workload: Workload) -> Row:
        """Derive the row of `bicache-dual` with all logits that the published code computes.

        Of these it never reads those of all rows at a block's start, and those of the prefix at every step. The derived
        time is the measured one and that of these products.
        """
        model, num_rows = self._loaded.model, 2048
        hidden = torch.randn(num_rows, model.config.hidden_size, device=self._platform.device).to(self._platform.dtype)
        row_s = seconds(lambda: model.logits(hidden), self._platform.device) / num_rows
        num_blocks = workload.canvas // workload.block
        unread = num_blocks * (workload.prefix + workload.suffix) + workload.num_steps * workload.prefix
        token_s = 1 / row["canvas_tokens_per_s"] + unread * row_s / workload.canvas
        return {
            **self._identity("bicache-dual, all logits (derived)", workload),
            "canvas_tokens_per_s": 1 / token_s,
        }

    def _miss_s(self, prefix: int) -> float:
        """Return the median time of the step that builds an entry, by which the first request behind a prefix waits."""
        self._build_s(prefix)  # compiles the remaining kernels
        return median(self._build_s(prefix) for _ in range(NUM_MISSES))

    def _build_s(self, prefix: int) -> float:
        self._num_misses += 1
        workload = Workload(prefix, 1, 1, seed=self._num_misses)
        load = ConstantLoad(self._engine, self._loaded.config.vocab_size, workload, POLICIES["lean"])
        self._platform.synchronize()
        started = time.perf_counter()
        load.step()
        self._platform.synchronize()
        elapsed_s = time.perf_counter() - started
        load.close()
        return elapsed_s


def judge(rows: Sequence[Row]) -> Iterator[Bar]:
    """Yield the bars at P = 2048 with one prefix, each from the rows of one part."""
    for _, part in groupby(sorted(rows, key=part_of), key=part_of):
        yield from judge_part(part)


def part_of(row: Row) -> int:
    return int(row.get("part", 0))


def judge_part(rows: Iterable[Row]) -> Iterator[Bar]:
    found = {
        (row["policy"], row["batch"]): row
        for row in rows
        if row.get("prefix") == BAR_PREFIX and row.get("prefixes") == 1
    }
    for batch in (16, 64):
        lean = found.get(("lean", batch))
        if lean is None:
            continue
        yield Bar(f"batch {batch}: lean, share of its roofline", lean["roofline"], ">=", 0.55)
        published = "bicache-dual, all logits (derived)"
        for policy, bound in (("dual", 1.5), ("bicache-dual", 1.9), (published, 1.9), ("none", 12.0)):
            if other := found.get((policy, batch)):
                gain = lean["canvas_tokens_per_s"] / other["canvas_tokens_per_s"]
                yield Bar(f"batch {batch}: lean against {policy}", gain, ">=", bound)
        for policy in ("lean+anchors", "lean+skip-refresh"):
            if other := found.get((policy, batch)):
                gain = other["canvas_tokens_per_s"] / lean["canvas_tokens_per_s"]
                yield Bar(f"batch {batch}: {policy} against lean", gain, ">=", 1.4)
    if alone := found.get(("lean", 1)):
        yield Bar("batch 1: an in-block step, in reads of the weights", alone["weight_reads"], "<=", 1.25)
    if full := found.get(("lean", 64)):
        yield Bar("batch 64: prefix memory, in copies a request", full["prefix_copies"], "<=", 0.55)
