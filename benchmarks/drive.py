"""Runs requests through an engine without a server, and returns their answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Self

import torch

from benchmarks.report import cpu_name
from cache_service.core.types import ReplicaId
from workers.api import DecodingParams, GenerateChunk, GenerateRequest, Usage
from workers.config import BiCacheConfig, EngineConfig, KVConfig
from workers.engine.engine import Engine
from workers.engine.factory import create_engine
from workers.models.bundle import model_directory
from workers.models.loader import LoadedModel, load_model

POLICIES: Mapping[str, DecodingParams] = MappingProxyType(
    {name: DecodingParams(policy=name) for name in ("none", "prefix-naive", "bicache", "dual", "bicache-dual", "lean")}
    | {
        "lean+anchors": DecodingParams(policy="lean", anchors=0.2),
        "lean+skip-refresh": DecodingParams(policy="lean", skip_refresh=True),
    }
)
"""Decoding parameters of the policies, by their names in tables."""


@dataclass(frozen=True)
class Answer:
    """An answer has all tokens of one finished request."""

    token_ids: tuple[int, ...]
    usage: Usage


@dataclass(frozen=True)
class Platform:
    """Loads models and builds engines on one device in one type."""

    device: torch.device
    dtype: torch.dtype
    max_heavy_rows: int = 1 << 16
    """A server's default is smaller, since it bounds the memory of a step's rows beside the pool."""
    kv: KVConfig = field(default_factory=lambda: KVConfig(pool_bytes=1 << 30))

    @classmethod
    def of(cls, device: str, dtype: str | None) -> Self:
        """Choose a platform by names; without a dtype, float32 on a CPU and bfloat16 on a GPU."""
        chosen = torch.device(device)
        return cls(chosen, getattr(torch, dtype or ("float32" if chosen.type == "cpu" else "bfloat16")))

    @property
    def device_name(self) -> str:
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else cpu_name()

    def load(self, name: str) -> LoadedModel:
        """Load a bundled model, or a model directory."""
        return load_model(model_directory(name), device=self.device, dtype=self.dtype)

    def build_engine(self, loaded: LoadedModel, *, batch: int, bicache: BiCacheConfig | None = None) -> Engine:
        """Build an empty engine that takes any number of requests and lets refreshes run together."""
        return create_engine(
            loaded,
            engine=EngineConfig(max_batch=batch, max_waiting=1 << 20, max_heavy_rows=self.max_heavy_rows),
            kv=self.kv,
            bicache=bicache or BiCacheConfig(),
            replica=ReplicaId("benchmark"),
            device=self.device,
            dtype=self.dtype,
        )

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def drive(
    engine: Engine,
    requests: Iterable[GenerateRequest],
    *,
    on_answer: Callable[[], object] = lambda: None,
    on_step: Callable[[], object] = lambda: None,
) -> list[Answer]:
    """Run `requests` to their ends and return the answers in the same order. Raises the first failure."""
    tokens: dict[str, list[int]] = {}
    usages: dict[str, Usage] = {}
    for request in requests:
        engine.submit(request)
        tokens[request.request_id] = []
    while engine.has_work:
        for outcome in engine.step():
            if not isinstance(outcome, GenerateChunk):
                raise outcome.error
            tokens[outcome.request_id].extend(outcome.token_ids)
            if outcome.finish_reason and outcome.usage:
                usages[outcome.request_id] = outcome.usage
                on_answer()
        on_step()
    return [Answer(tuple(answer), usages[name]) for name, answer in tokens.items()]
