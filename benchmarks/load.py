"""An engine under a constant number of requests, watched for some seconds."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from random import Random
from statistics import median

import torch

from benchmarks.drive import Place
from cache_service.core.hashing import prefix_keys
from workers.api import DecodingParams, GenerateChunk, GenerateRequest, PrefixCandidate
from workers.engine.engine import Engine


@dataclass(frozen=True)
class Workload:
    """`batch` requests at a time, in turn behind one of `num_prefixes` prefixes."""

    prefix: int
    batch: int
    num_prefixes: int
    user: int = 64
    canvas: int = 256
    num_steps: int = 128
    block: int = 32
    seed: int = 0

    @property
    def suffix(self) -> int:
        return self.user + self.canvas


@dataclass(frozen=True)
class Sample:
    """What happened in the watched time."""

    elapsed_s: float
    canvas_tokens: int
    num_forwards: int
    """Passes of single requests."""
    num_steps: int
    """Of the engine."""
    step_s: float
    """The median step."""
    num_running: int
    """In the end."""
    used_pages: int
    """In the end."""
    peak_pages: int
    peak_bytes: int | None
    """Device memory, the pool included; None on a CPU."""


class ConstantLoad:
    """Requests that never run out; each that ends is followed by another."""

    def __init__(self, engine: Engine, vocab_size: int, workload: Workload, params: DecodingParams) -> None:
        self._engine, self._workload = engine, workload
        self._params = replace(params, num_steps=workload.num_steps, block_length=workload.block)
        rng = Random(f"{workload.prefix} {workload.seed}")
        self._prefixes = [
            tuple(rng.randrange(vocab_size // 2) for _ in range(workload.prefix)) for _ in range(workload.num_prefixes)
        ]
        self._requests = self._draw(rng, vocab_size)
        self._open: set[str] = set()

    def _draw(self, rng: Random, vocab_size: int) -> Iterator[GenerateRequest]:
        for index in itertools.count():
            prefix = self._prefixes[index % len(self._prefixes)]
            token_ids = (*prefix, *(rng.randrange(vocab_size // 2) for _ in range(self._workload.user)))
            [key] = prefix_keys("random", "", token_ids, [len(prefix)])
            yield GenerateRequest(
                str(index), token_ids, self._workload.canvas, (PrefixCandidate(len(prefix), key),), self._params
            )

    def fill(self) -> None:
        """Submit what is missing to the batch."""
        while len(self._open) < self._workload.batch:
            request = next(self._requests)
            self._engine.submit(request)
            self._open.add(request.request_id)

    def step(self) -> None:
        self.fill()
        for outcome in self._engine.step():
            if not isinstance(outcome, GenerateChunk):
                raise outcome.error
            if outcome.finish_reason:
                self._open.remove(outcome.request_id)

    def close(self) -> None:
        for request_id in self._open:
            self._engine.abort(request_id)


@dataclass(frozen=True)
class Patience:
    """How long a load is watched, and how long it may take before that to come into its stride."""

    watch_s: float = 4.0
    warm_up_s: float = 6.0


def watch(engine: Engine, place: Place, load: ConstantLoad, patience: Patience, *, warm_steps: int) -> Sample:
    """Warm up for `warm_steps`, or as long as patience lasts where that comes first, then watch."""
    on_gpu = place.device.type == "cuda"
    started = time.perf_counter()
    for _ in range(warm_steps):
        load.step()
        if time.perf_counter() - started > patience.warm_up_s:
            break
    place.synchronize()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(place.device)
    before, started = engine.stats(), time.perf_counter()
    times, peak_pages = [started], 0
    while times[-1] - started < patience.watch_s or len(times) < 3:
        load.step()
        times.append(time.perf_counter())
        peak_pages = max(peak_pages, engine.num_used_pages)
    place.synchronize()
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
        peak_bytes=torch.cuda.max_memory_allocated(place.device) if on_gpu else None,
    )
