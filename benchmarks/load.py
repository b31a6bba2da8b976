"""Keeps an engine under a constant number of requests and watches it for some seconds."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from random import Random
from statistics import median

import torch

from benchmarks.drive import Platform
from cache_service.core.hashing import prefix_keys
from workers.api import DecodingParams, GenerateChunk, GenerateRequest, PrefixCandidate
from workers.engine.engine import Engine


@dataclass(frozen=True)
class Workload:
    """A workload is `batch` requests at a time, behind `num_prefixes` prefixes in turn."""

    prefix: int
    batch: int
    num_prefixes: int
    user: int = 64
    canvas: int = 256
    num_steps: int = 128
    block: int = 32
    seed: int = 0
    ends_early: bool = False
    """True where the model can end an answer before the canvas is full, which the load then prevents."""

    @property
    def suffix(self) -> int:
        return self.user + self.canvas


@dataclass(frozen=True)
class Sample:
    """Holds what the engine did while it was watched."""

    elapsed_s: float
    canvas_tokens: int
    num_forwards: int
    """Number of passes, counted for each request."""
    num_steps: int
    """Number of the engine's steps."""
    step_s: float
    """Time of the median step."""
    num_running: int
    """Number of requests that ran at the end."""
    used_pages: int
    """Number of pages in use at the end."""
    peak_pages: int
    peak_bytes: int | None
    """Device memory with the pool; None on a CPU."""


class ConstantLoad:
    """Submits a new request for each that ends."""

    def __init__(self, engine: Engine, vocab_size: int, workload: Workload, params: DecodingParams) -> None:
        self._engine, self._workload = engine, workload
        min_tokens = workload.canvas if workload.ends_early else 0
        self._params = replace(params, num_steps=workload.num_steps, block_length=workload.block, min_tokens=min_tokens)
        rng = Random(f"{workload.prefix} {workload.seed}")
        self._prefixes = [
            tuple(rng.randrange(vocab_size // 2) for _ in range(workload.prefix)) for _ in range(workload.num_prefixes)
        ]
        self._requests = self._draw(rng, vocab_size)
        self._running: set[str] = set()

    def _draw(self, rng: Random, vocab_size: int) -> Iterator[GenerateRequest]:
        for index in itertools.count():
            prefix = self._prefixes[index % len(self._prefixes)]
            token_ids = (*prefix, *(rng.randrange(vocab_size // 2) for _ in range(self._workload.user)))
            [key] = prefix_keys("random", "", token_ids, [len(prefix)])
            yield GenerateRequest(
                str(index), token_ids, self._workload.canvas, (PrefixCandidate(len(prefix), key),), self._params
            )

    def fill(self) -> None:
        """Submit requests until the batch is full."""
        while len(self._running) < self._workload.batch:
            request = next(self._requests)
            self._engine.submit(request)
            self._running.add(request.request_id)

    def step(self) -> None:
        self.fill()
        for outcome in self._engine.step():
            if not isinstance(outcome, GenerateChunk):
                raise outcome.error
            if outcome.finish_reason:
                self._running.remove(outcome.request_id)

    def close(self) -> None:
        for request_id in self._running:
            self._engine.abort(request_id)


@dataclass(frozen=True)
class Durations:
    """Sets how long to watch a load, and how long to warm it up at most."""

    watch_s: float = 4.0
    warm_up_s: float = 6.0


def watch(engine: Engine, platform: Platform, load: ConstantLoad, durations: Durations, *, warm_steps: int) -> Sample:
    """Warm up for `warm_steps`, but no longer than `durations` allows, then watch the engine."""
    on_gpu = platform.device.type == "cuda"
    started = time.perf_counter()
    for _ in range(warm_steps):
        load.step()
        if time.perf_counter() - started > durations.warm_up_s:
            break
    platform.synchronize()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(platform.device)
    before, started = engine.stats(), time.perf_counter()
    times, peak_pages = [started], 0
    while times[-1] - started < durations.watch_s or len(times) < 3:
        load.step()
        times.append(time.perf_counter())
        peak_pages = max(peak_pages, engine.num_used_pages)
    platform.synchronize()
    elapsed_s = time.perf_counter() - started
    after = engine.stats()
    return Sample(
        elapsed_s=elapsed_s,
        canvas_tokens=after.num_canvas_tokens - before.num_canvas_tokens,
        num_forwards=after.num_forwards - before.num_forwards,
        num_steps=len(times) - 1,
        step_s=median(b - a for a, b in itertools.pairwise(times)),
        num_running=after.num_running,
        used_pages=engine.num_used_pages,
        peak_pages=peak_pages,
        peak_bytes=torch.cuda.max_memory_allocated(platform.device) if on_gpu else None,
    )
