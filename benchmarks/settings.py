"""Models, engines and traffic that the whole stack is measured with."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.checkpoints import write_checkpoint
from benchmarks.dimensions import LLADA_8B
from benchmarks.traffic import Traffic
from workers.config import BiCacheConfig, EngineConfig
from workers.models.bundle import model_directory
from workers.models.loader import read_json


@dataclass(frozen=True)
class Setting:
    """What is measured, by the server's own configuration."""

    model: Path
    device: str
    dtype: str
    num_threads: int
    engine: EngineConfig
    bicache: BiCacheConfig
    traffic: Traffic
    num_singles: int
    """Requests that come one at a time."""


def bundled(name: str, device: str, streams: int, *, quick: bool) -> Setting:
    """One thread for the engine on a CPU: clients, edge and worker have the other cores."""
    model = model_directory(name)
    traffic = Traffic(
        streams=streams,
        rounds=2,
        prefix=256,
        user=32,
        canvas=32,
        num_steps=16,
        block=32,
        vocab_size=read_json(model / "config.json")["vocab_size"],
        ends_early=True,
    )
    return Setting(
        model,
        device,
        dtype="float32" if device == "cpu" else "bfloat16",
        num_threads=1,
        engine=EngineConfig(max_batch=streams),
        bicache=BiCacheConfig(),
        traffic=traffic,
        num_singles=10 if quick else 30,
    )


def published(directory: Path, streams: int, *, quick: bool) -> Setting:
    """LLaDA-8B's dimensions. With random weights a probe would find no likeness, so the depth table is trusted."""
    write_checkpoint(directory, LLADA_8B, torch.device("cuda"))
    torch.cuda.empty_cache()  # the device is for those who are measured
    traffic = Traffic(
        streams=streams,
        rounds=1 if quick else 2,
        prefix=2048,
        user=64,
        canvas=256,
        num_steps=128,
        block=32,
        vocab_size=LLADA_8B.vocab_size,
        ends_early=False,
    )
    return Setting(
        directory,
        "cuda",
        dtype="bfloat16",
        num_threads=1,
        engine=EngineConfig(max_batch=streams, max_heavy_rows=4096),
        bicache=BiCacheConfig(probe_positions=0),
        traffic=traffic,
        num_singles=5 if quick else 15,
    )


def configuration(setting: Setting) -> dict[str, Any]:
    """The server's, for one replica with the very engine that is measured alone."""
    return {
        "model": str(setting.model),
        "replicas": 1,
        "limits": {"request_timeout_s": 1200.0},
        "worker": {
            "device": setting.device,
            "dtype": setting.dtype,
            "num_threads": setting.num_threads,
            "engine": asdict(setting.engine),
            "bicache": asdict(setting.bicache),
        },
    }
