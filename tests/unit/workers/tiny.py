"""Tiny random models, requests and a driver for engine tests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from cache_service.core.hashing import prefix_keys
from cache_service.core.types import ReplicaId
from workers.api import DecodingParams, FinishReason, GenerateChunk, GenerateRequest, PrefixCandidate, Usage
from workers.config import BiCacheConfig, EngineConfig, KVConfig
from workers.engine.engine import Engine
from workers.engine.factory import create_engine
from workers.errors import WorkerError
from workers.models.base import ModelConfig
from workers.models.layers import Transformer
from workers.models.loader import LoadedModel
from workers.scheduler.plan import Failure

TINY = ModelConfig(
    architecture="llada",
    num_layers=4,
    hidden_size=32,
    num_heads=4,
    num_kv_heads=4,
    mlp_size=64,
    vocab_size=97,
    context_length=256,
    rope_theta=10_000.0,
    norm_eps=1e-5,
    mask_token_id=96,
    eos_token_id=95,
    pad_token_id=95,
)
POOL_BYTES = 1 << 23
PAGE_TOKENS = 4


def tiny_model(seed: int = 0, *, depth_table: Mapping[int, int] | None = None, **changes: int) -> LoadedModel:
    """Random weights, scaled up so that attention and confidence are far from uniform."""
    config = replace(TINY, **changes)
    torch.manual_seed(seed)
    model = Transformer(config).requires_grad_(requires_grad=False).eval()
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.normal_(std=0.25)
    return LoadedModel("tiny", config, model, f"tiny-{seed}", depth_table)


def engine_of(
    loaded: LoadedModel,
    *,
    engine: EngineConfig | None = None,
    kv: KVConfig | None = None,
    bicache: BiCacheConfig | None = None,
    shares_builds: bool = False,
) -> Engine:
    return create_engine(
        loaded,
        engine=engine or EngineConfig(),
        kv=kv or KVConfig(pool_bytes=POOL_BYTES, entry_bytes=POOL_BYTES // 2, page_tokens=PAGE_TOKENS),
        bicache=bicache or BiCacheConfig(probe_positions=0),
        replica=ReplicaId("tiny#1"),
        device=torch.device("cpu"),
        dtype=torch.float32,
        shares_builds=shares_builds,
    )


def prompt_of(length: int, seed: int = 0) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(0, TINY.mask_token_id - 1, (length,), generator=generator).tolist())


def request_of(
    prompt: Sequence[int],
    max_tokens: int,
    *,
    prefixes: Sequence[int] = (),
    request_id: str = "r",
    salt: str = "",
    **params: object,
) -> GenerateRequest:
    """`prefixes` are the candidate boundaries; `params` those of `DecodingParams`."""
    keys = prefix_keys("tiny", salt, prompt, prefixes)
    return GenerateRequest(
        request_id=request_id,
        token_ids=tuple(prompt),
        max_tokens=max_tokens,
        prefixes=tuple(map(PrefixCandidate, prefixes, keys)),
        params=DecodingParams(**params),  # type: ignore[arg-type]
    )


@dataclass
class Answer:
    """What one request's caller saw."""

    token_ids: tuple[int, ...] = ()
    reason: FinishReason | None = None
    usage: Usage | None = None
    error: WorkerError | None = None
    num_chunks: int = 0

    def take(self, outcome: GenerateChunk | Failure) -> None:
        if isinstance(outcome, Failure):
            self.error = outcome.error
            return
        self.num_chunks += 1
        self.token_ids += outcome.token_ids
        self.reason, self.usage = outcome.finish_reason, outcome.usage


def run_all(engine: Engine, requests: Iterable[GenerateRequest]) -> dict[str, Answer]:
    """Submit all at once and step until nothing is left."""
    answers: dict[str, Answer] = {}
    for request in requests:
        engine.submit(request)
        answers[request.request_id] = Answer()
    drain(engine, answers)
    return answers


def drain(engine: Engine, answers: dict[str, Answer]) -> None:
    while engine.has_work:
        for outcome in engine.step():
            answers[outcome.request_id].take(outcome)


def run_one(engine: Engine, request: GenerateRequest) -> Answer:
    return run_all(engine, [request])[request.request_id]
