"""Measures an engine without a server, under the traffic that the server gets."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import torch

from benchmarks.settings import Setting
from benchmarks.traffic import Timing, Traffic
from cache_service.core.types import ReplicaId
from cluster.generation.tokenization import Tokenizer, TokenPrompt
from workers.api import GenerateChunk, GenerateRequest
from workers.config import KVConfig
from workers.engine.factory import create_engine
from workers.models.loader import load_model


@dataclass(frozen=True)
class EngineMeasurement:
    """Holds the timings of single requests and of all streams."""

    single: Timing
    streams: Timing
    num_forwards: int
    """Forward passes under all streams."""
    num_prefix_hits: int
    """Prefix hits under all streams."""


def measure_alone(setting: Setting) -> EngineMeasurement:
    """Measure the engine in a process of its own, which frees the device's memory when it ends."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(_measure, setting).result()


def _measure(setting: Setting) -> EngineMeasurement:
    torch.set_num_threads(setting.num_threads)
    driver = EngineDriver(setting)
    traffic = setting.traffic
    driver.drive(traffic.alone(1), first_turn=-1)
    single = driver.drive(traffic.alone(setting.num_singles))
    before = driver.engine.stats()
    streams = driver.drive(traffic)
    after = driver.engine.stats()
    return EngineMeasurement(
        single,
        streams,
        after.num_forwards - before.num_forwards,
        after.num_prefix_hits - before.num_prefix_hits,
    )


class EngineDriver:
    """Submits requests to the engine and steps it."""

    def __init__(self, setting: Setting) -> None:
        device, dtype = torch.device(setting.device), getattr(torch, setting.dtype)
        self._loaded = load_model(setting.model, device=device, dtype=dtype)
        self._tokenization = Tokenizer(setting.model)
        self.engine = create_engine(
            self._loaded,
            engine=setting.engine,
            kv=KVConfig(),
            bicache=setting.bicache,
            replica=ReplicaId("benchmark"),
            device=device,
            dtype=dtype,
        )
        list(self.engine.warm_up())

    def drive(self, traffic: Traffic, first_turn: int = 0) -> Timing:
        """Submit every stream's requests, one after the other, and time their answers."""
        pending = {stream: self._requests(traffic, stream, first_turn) for stream in range(traffic.streams)}
        stream_of: dict[str, int] = {}
        began: dict[str, float] = {}
        first: dict[str, float] = {}
        last: dict[str, float] = {}
        num_chunks = 0

        def submit_next(stream: int) -> None:
            if request := next(pending[stream], None):
                self.engine.submit(request)
                stream_of[request.request_id], began[request.request_id] = stream, time.perf_counter()

        started = time.perf_counter()
        for stream in pending:
            submit_next(stream)
        while self.engine.has_work:
            for outcome in self.engine.step():
                if not isinstance(outcome, GenerateChunk):
                    raise outcome.error
                name, now = outcome.request_id, time.perf_counter()
                num_chunks += 1
                first.setdefault(name, now - began[name])
                if outcome.finish_reason:
                    last[name] = now - began[name]
                    submit_next(stream_of[name])
        return Timing(time.perf_counter() - started, list(first.values()), list(last.values()), num_chunks)

    def _requests(self, traffic: Traffic, stream: int, first_turn: int) -> Iterator[GenerateRequest]:
        """Yield a stream's requests as the server's ingress makes them."""
        for turn in range(first_turn, first_turn + traffic.rounds):
            prompt = self._tokenization.encode(TokenPrompt(traffic.prompt(stream, turn)))
            yield GenerateRequest(
                f"{stream} {turn}",
                prompt.token_ids,
                traffic.canvas,
                prompt.candidates(self._loaded.fingerprint, ""),
                traffic.params,
            )
