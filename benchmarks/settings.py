"""A setting names the model, the engine and the traffic with which the whole stack is measured."""

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
    """Holds what is measured, in the terms of the server's configuration."""

    model: Path
    device: str
    dtype: str
    num_threads: int
    engine: EngineConfig
    bicache: BiCacheConfig
    traffic: Traffic
    num_singles: int
    """Number of requests that come one at a time."""


def bundled(name: str, device: str, streams: int, *, quick: bool) -> Setting:
    """Return a setting with one thread for the engine, so that clients, ingress and worker have the other cores."""
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
    """Write a model of LLaDA-8B's dimensions and return its setting.

    With random weights a probe would find no similarity, so that the setting trusts the depth table.
    """
    write_checkpoint(directory, LLADA_8B, torch.device("cuda"))
    torch.cuda.empty_cache()  # leave the device to the engines that are measured
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
    """Return the server's configuration, for one replica with the same engine that is measured alone."""
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
