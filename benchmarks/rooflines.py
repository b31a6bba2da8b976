"""How near an engine comes to what its device can do, at published dimensions with random weights.

Every policy runs on the same kernels in the same process, next to the two ceilings: copying memory, multiplying
matrices. Requests come as fast as they are served. With random weights a probe would find no likeness between cached
and fresh states, so the depth table is trusted as it is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from rich.progress import Progress

from benchmarks.costs import COST, Costs, Request
from benchmarks.dimensions import random_model, weight_bytes
from benchmarks.drive import POLICIES, Place
from benchmarks.load import ConstantLoad, Sample, Workload, watch
from benchmarks.report import Bar, Row
from workers.bicache.depth import DepthTable, ratio_percent
from workers.config import BiCacheConfig, KVConfig
from workers.models.loader import LoadedModel

REFRESH_INTERVAL = 16
BAR_PREFIX = 2048
MAX_HEAVY_ROWS = 4096


@dataclass(frozen=True)
class Ceilings:
    """What the device reaches on the plainest work of each kind."""

    copy_bytes_per_s: float
    """Bytes read plus bytes written."""
    matmul_flops: float


def ceilings(place: Place) -> Ceilings:
    """A 4 GiB copy, and a product of two 8192-squared matrices in the model's type, random values."""
    source = torch.randn(1 << 31, dtype=torch.bfloat16, device=place.device)
    target = torch.empty_like(source)
    copy_s = seconds(lambda: target.copy_(source))
    a, b = torch.randn(2, 8192, 8192, device=place.device).to(place.dtype)
    matmul_s = seconds(lambda: a @ b)
    return Ceilings(2 * source.nbytes / copy_s, 2 * 8192**3 / matmul_s)


def seconds(run: Callable[[], object]) -> float:
    """The median run, by device events."""
    from triton.testing import do_bench

    return float(do_bench(run, return_mode="median")) / 1000


def workloads(*, quick: bool) -> Iterator[tuple[Workload, Sequence[str]]]:
    """Each with the policies to time under it."""
    published = ("none", "dual", "bicache-dual", "lean")
    if quick:
        yield Workload(BAR_PREFIX, 16, 1), (*published, "lean+anchors")
        return
    for batch in (64, 16, 1):
        yield Workload(BAR_PREFIX, batch, 1), (*published, "lean+anchors", "lean+skip-refresh")
    for prefix in (512, 1024, 3500):
        for batch in (1, 4, 16, 64):
            yield Workload(prefix, batch, 1), ("dual", "lean")
    yield Workload(BAR_PREFIX, 4, 1), published
    for batch in (16, 64):
        for num_prefixes in (4, batch):
            yield Workload(BAR_PREFIX, batch, num_prefixes), ("dual", "lean")


class Rooflines:
    """One model on one device."""

    def __init__(self, name: str, place: Place) -> None:
        self._place = Place(place.device, place.dtype, MAX_HEAVY_ROWS, KVConfig())
        self._ceilings = ceilings(place)
        self._loaded: LoadedModel = random_model(name, place)
        self._engine = self._place.engine(self._loaded, batch=64, bicache=BiCacheConfig(probe_positions=0))
        self._num_misses = 0
        list(self._engine.warm_up())

    def rows(self, seconds_each: float, progress: Progress, *, quick: bool) -> Iterator[Row]:
        """The ceilings, what a miss costs, and every policy under every workload."""
        yield {"policy": "ceiling: copying, GB/s", "ceiling": self._ceilings.copy_bytes_per_s / 1e9}
        yield {"policy": "ceiling: matrix product, TFLOP/s", "ceiling": self._ceilings.matmul_flops / 1e12}
        found = list(workloads(quick=quick))
        for prefix in sorted({workload.prefix for workload, _ in found}):
            self._miss(prefix)  # compiles what is still to be compiled
            yield self._miss(prefix)
        task = progress.add_task("", total=sum(len(policies) for _, policies in found))
        for workload, policies in found:
            for policy in policies:
                progress.update(task, description=f"P={workload.prefix}, batch {workload.batch}: {policy}")
                row = self._row(policy, workload, self._watch(policy, workload, seconds_each))
                yield row
                if policy == "bicache-dual":
                    yield self._as_published(row, workload)
                progress.advance(task)

    def _watch(self, policy: str, workload: Workload, seconds_each: float) -> Sample:
        load = ConstantLoad(self._engine, self._loaded.config.vocab_size, workload, POLICIES[policy])
        steps_per_block = workload.num_steps * workload.block // workload.canvas
        warm_steps = 3 if policy == "none" else workload.batch + 2 * steps_per_block
        try:
            return watch(self._engine, self._place, load, seconds_each, warm_steps=warm_steps)
        finally:
            load.close()

    def _row(self, policy: str, workload: Workload, sample: Sample) -> Row:
        config = self._loaded.config
        total = workload.prefix + workload.suffix
        depth = DepthTable.for_model(config, None).lookup(ratio_percent(workload.prefix, total))
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
        read_s = weight_bytes(config, self._place.dtype.itemsize) / self._ceilings.copy_bytes_per_s
        page_tokens = self._place.kv.page_tokens
        num_running = max(1, sample.num_running)  # between two requests there is none
        suffix_pages = num_running * config.num_layers * -(-workload.suffix // page_tokens)
        copy_pages = num_running * config.num_layers * workload.prefix / page_tokens
        return {
            "policy": policy,
            "prefix": workload.prefix,
            "batch": workload.batch,
            "prefixes": workload.num_prefixes,
            "running": sample.num_running,
            "canvas_tokens_per_s": speed,
            "ms_per_step": 1000 * sample.elapsed_s / sample.num_steps,
            "median_step_ms": 1000 * sample.step_s,
            "tflops": speed * flops_per_token / 1e12,
            "roofline": speed * flops_per_token / self._ceilings.matmul_flops,
            "weight_reads": sample.step_s / read_s,
            "prefix_copies": (sample.used_pages - suffix_pages) / copy_pages,
            "peak_gib": sample.peak_bytes / (1 << 30),
        }

    def _as_published(self, row: Row, workload: Workload) -> Row:
        """`bicache-dual` with the logits that the published code computes and nobody reads: those of all rows at a
        block's start, of prefix and block at every step. Derived: the measured time, and that of these products.
        """
        model, num_rows = self._loaded.model, 2048
        hidden = torch.randn(num_rows, model.config.hidden_size, device=self._place.device).to(self._place.dtype)
        row_s = seconds(lambda: model.logits(hidden)) / num_rows
        num_blocks = workload.canvas // workload.block
        unread = num_blocks * (workload.prefix + workload.suffix) + workload.num_steps * workload.prefix
        token_s = 1 / row["canvas_tokens_per_s"] + unread * row_s / workload.canvas
        return {
            "policy": "bicache-dual, all logits (derived)",
            "prefix": workload.prefix,
            "batch": workload.batch,
            "prefixes": workload.num_prefixes,
            "canvas_tokens_per_s": 1 / token_s,
        }

    def _miss(self, prefix: int) -> Row:
        """What the first request behind a prefix pays for its entry: the step that builds it."""
        self._num_misses += 1
        workload = Workload(prefix, 1, 1, seed=self._num_misses)
        load = ConstantLoad(self._engine, self._loaded.config.vocab_size, workload, POLICIES["lean"])
        self._place.synchronize()
        started = time.perf_counter()
        load.step()
        self._place.synchronize()
        elapsed_s = time.perf_counter() - started
        load.close()
        return {"policy": "a miss", "prefix": prefix, "batch": 1, "prefixes": 1, "median_step_ms": 1000 * elapsed_s}


def judge(rows: Sequence[Row]) -> Iterator[Bar]:
    """At P = 2048 with one prefix."""
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
