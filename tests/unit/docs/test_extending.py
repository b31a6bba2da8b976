"""The checklists of docs/extending.md, walked with sample extensions that run through the engine."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.checkpoints import LLADA_CONFIG, write_checkpoint
from tests.unit.workers.engine.reference import Decoder
from tests.unit.workers.tiny import TINY, engine_of, prompt_of, request_of, run_one, tiny_model
from workers.decoding import greedy, parameters, unmasking
from workers.decoding.rules import Unmasking
from workers.decoding.sampling import Prediction
from workers.decoding.unmasking import SCORERS, Draw
from workers.engine import validation
from workers.errors import UnsupportedModelError
from workers.models import loader
from workers.models.base import Architecture, ModelConfig
from workers.models.layers import Transformer
from workers.models.llada import LLADA
from workers.models.loader import ARCHITECTURES, load_model
from workers.scheduler.policy import POLICIES, Geometry, Pass, Policy, Progress

EOS = TINY.eos_token_id


def always_fresh(geometry: Geometry, progress: Progress) -> Pass:
    """Refresh the prefix in every step, inside blocks too."""
    return Pass(rows=geometry.suffix, deep=geometry.deep, decode=progress.block)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("depth", range(5))
def test_a_new_policy_is_a_function_and_an_entry(monkeypatch: pytest.MonkeyPatch, seed: int, depth: int) -> None:
    sample = Policy("always-fresh", always_fresh)
    monkeypatch.setattr(validation, "POLICIES", MappingProxyType({**POLICIES, sample.name: sample}))
    loaded, prompt = tiny_model(seed), prompt_of(24, seed)
    shape: dict[str, Any] = {"prefixes": [16], "num_steps": 6, "block_length": 12, "reuse_depth": depth}

    answer = run_one(engine_of(loaded), request_of(prompt, 12, policy="always-fresh", **shape))

    same = run_one(engine_of(loaded), request_of(prompt, 12, policy="bicache", refresh_interval=1, **shape))
    assert answer.token_ids == same.token_ids
    assert answer.usage is not None
    assert (answer.usage.policy, answer.usage.reuse_depth) == ("always-fresh", depth)


class Named(enum.Enum):
    """A base that an enum of rules can be made from."""

    @property
    def is_adaptive(self) -> bool:
        return self.name in {"THRESHOLD", "FACTOR"}


def leftmost(prediction: Prediction, _: Draw) -> Tensor:
    """Score all positions alike: equal scores go to the left."""
    return torch.zeros(len(prediction.token_ids))


@pytest.mark.parametrize("seed", range(4))
def test_a_new_rule_is_a_member_and_a_scorer(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """An enum can't grow, so a wider one takes its place wherever it is read."""
    members = {rule.name: rule.value for rule in Unmasking} | {"LEFTMOST": "leftmost"}
    wider: Any = Named("Unmasking", members)
    for module in (greedy, parameters, unmasking):
        monkeypatch.setattr(module, "Unmasking", wider)
    scorers = {wider[rule.name]: scorer for rule, scorer in SCORERS.items()} | {wider.LEFTMOST: leftmost}
    monkeypatch.setattr(unmasking, "SCORERS", MappingProxyType(scorers))
    loaded, prompt = tiny_model(seed), prompt_of(9, seed)
    request = request_of(
        prompt, 8, policy="none", block_length=8, num_steps=8, unmasking="leftmost", logit_bias=((EOS, -100.0),)
    )

    answer = run_one(engine_of(loaded), request)

    dense = Decoder(loaded, prompt, 8)
    for position in range(len(prompt), len(prompt) + 8):
        logits, _ = dense.full()
        logits[:, [TINY.mask_token_id, EOS]] = -torch.inf
        dense.tokens[position], dense.masked[position] = logits[position].argmax(), False
    assert answer.token_ids == dense.text()


def test_a_new_family_is_a_file_and_an_entry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def parse_config(raw: Mapping[str, Any]) -> ModelConfig:
        return replace(LLADA.parse_config(raw | {"model_type": "llada"}), architecture="sample")

    def checkpoint_name(parameter: str) -> str:
        return f"sample.{parameter}"

    config, cpu = {**LLADA_CONFIG, "model_type": "Sample"}, torch.device("cpu")
    sample = Architecture("sample", ("Sample",), parse_config, checkpoint_name, Transformer)
    write_checkpoint(tmp_path, sample, config)
    with pytest.raises(UnsupportedModelError, match="Sample"):
        load_model(tmp_path, device=cpu, dtype=torch.float32)
    monkeypatch.setattr(loader, "ARCHITECTURES", (*ARCHITECTURES, sample))

    answer = run_one(engine_of(load_model(tmp_path, device=cpu, dtype=torch.float32)), request_of(prompt_of(9), 8))

    write_checkpoint(tmp_path, LLADA, LLADA_CONFIG)
    same = run_one(engine_of(load_model(tmp_path, device=cpu, dtype=torch.float32)), request_of(prompt_of(9), 8))
    assert answer.error is None
    assert answer.token_ids == same.token_ids
