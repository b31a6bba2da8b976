"""A whole worker in this process: what Serve deploys, less Serve."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cache_service.core.types import ReplicaId
from cache_service.testing import free_port
from tests.support.checkpoints import LLADA_CONFIG
from tests.support.waiting import until
from tests.unit.workers.tiny import request_of
from workers.api import FinishReason
from workers.config import KVConfig, WorkerConfig
from workers.errors import EngineClosedError, InvalidRequestError, OverloadedError
from workers.models.layers import Transformer
from workers.models.llada import LLADA
from workers.worker import Worker, dtype_of, num_threads_of


def write_llada(directory: Path) -> None:
    (directory / "config.json").write_text(json.dumps(LLADA_CONFIG))
    model = Transformer(LLADA.parse_config(LLADA_CONFIG))
    weights = {LLADA.checkpoint_name(name): weight.detach() for name, weight in model.named_parameters()}
    save_file(weights, directory / "model.safetensors")


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    write_llada(tmp_path)
    config = WorkerConfig(
        model=tmp_path,
        device="cpu",
        num_threads=1,
        kv=KVConfig(pool_bytes=1 << 22, entry_bytes=1 << 20),
    )
    worker = Worker(config, ReplicaId("w#1"), num_replicas=2)
    yield worker
    worker.__del__()


async def test_a_worker_answers_and_describes_itself(worker: Worker) -> None:
    chunks = [chunk async for chunk in worker.generate(request_of([1, 2, 3], 8))]
    assert chunks[-1].finish_reason in FinishReason
    usage = chunks[-1].usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.replica) == (3, "w#1")
    info = await worker.model_info()
    assert (info.context_length, info.mask_token_id, info.eos_token_id) == (256, 96, 95)
    assert (await worker.stats()).num_requests == 1
    assert 'palimpsest_worker_requests_total{replica="w#1"} 1.0' in await worker.metrics()
    assert 'palimpsest_worker_request_seconds_count{replica="w#1"} 1.0' in await worker.metrics()
    assert f'palimpsest_worker_step_seconds_count{{replica="w#1"}} {usage.num_forwards}.0' in await worker.metrics()
    worker.check_health()


async def test_a_closed_worker_is_unhealthy(worker: Worker) -> None:
    worker.__del__()
    with pytest.raises(EngineClosedError, match="shutting down"):
        worker.check_health()


async def test_an_unhealthy_worker_names_the_reason_and_counts_it(worker: Worker) -> None:
    def corrupt() -> None:
        raise AssertionError("page 7 has two owners")

    worker._engine._engine.check_integrity = corrupt  # type: ignore[method-assign]
    await asyncio.wrap_future(worker._engine.call(lambda _: None))
    await until(lambda: not worker._engine.is_alive)
    with pytest.raises(EngineClosedError, match="page 7 has two owners"):
        worker.check_health()
    text = await worker.metrics()
    assert 'palimpsest_worker_engine_errors_total{kind="thread",replica="w#1"} 1.0' in text
    assert 'palimpsest_worker_engine_errors_total{kind="command",replica="w#1"} 0.0' in text


@pytest.mark.parametrize("error", [InvalidRequestError("no", param="seed"), OverloadedError("full", retry_after_s=3.0)])
def test_errors_keep_their_fields_on_the_way_to_the_caller(error: Exception) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), copy.args, vars(copy)) == (type(error), error.args, vars(error))


def test_defaults_follow_the_machine() -> None:
    assert dtype_of("auto", torch.device("cuda")) is torch.bfloat16
    assert dtype_of("auto", torch.device("cpu")) is torch.float32


def test_threads_are_what_is_configured_or_a_replicas_share_of_the_cores() -> None:
    cpu, cuda, cores = torch.device("cpu"), torch.device("cuda"), len(os.sched_getaffinity(0))
    default, three = WorkerConfig(model=Path()), WorkerConfig(model=Path(), num_threads=3)
    assert [num_threads_of(default, cpu, replicas) for replicas in (1, 10_000)] == [cores, 1]
    assert num_threads_of(default, cuda, 1) is None
    assert num_threads_of(three, cpu, 2) == num_threads_of(three, cuda, 2) == 3


def test_a_config_names_what_is_wrong() -> None:
    with pytest.raises(ValueError, match=r"kv\.entry_bytes"):
        KVConfig(pool_bytes=10, entry_bytes=11)


async def test_a_worker_that_cannot_reach_the_cache_service_shows_it(tmp_path: Path) -> None:
    write_llada(tmp_path)
    nowhere = f"127.0.0.1:{free_port()}"
    config = WorkerConfig(model=tmp_path, cache_service=nowhere, device="cpu", num_threads=1)
    worker = Worker(config, ReplicaId("w#1"), num_replicas=1)

    async def is_shown() -> bool:
        text = await worker.metrics()
        return 'palimpsest_worker_cache_service_reachable{replica="w#1"} 0.0' in text

    await until(is_shown)
    assert "palimpsest_worker_cache_service_silence_seconds" in await worker.metrics()
    worker.__del__()
