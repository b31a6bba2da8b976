"""A family of other layers takes one file, `chunked.py` beside this one, and one entry in `ARCHITECTURES`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.unit.workers.models.chunked import CHUNK, CHUNKED, RAW, ChunkedModel, sees
from tests.unit.workers.tiny import engine_of, prompt_of, request_of, run_one
from workers.config import BiCacheConfig
from workers.engine import factory
from workers.errors import UnsupportedModelError
from workers.models import loader
from workers.models.loader import LoadedModel, load_model

CPU = torch.device("cpu")
PREFIX, USER, CANVAS = 2 * CHUNK, CHUNK, 2 * CHUNK


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(loader, "ARCHITECTURES", (*loader.ARCHITECTURES, CHUNKED))
    torch.manual_seed(3)
    model = CHUNKED.build(CHUNKED.parse_config(RAW))
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=1.0 if ".out." in name else 0.3)
    weights = {CHUNKED.checkpoint_name(name): weight.detach() for name, weight in model.named_parameters()}
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(dict(RAW)))
    (tmp_path / "depth_table.json").write_text(json.dumps({"table": {"0": RAW["layers"]}}))
    return tmp_path


@pytest.fixture
def loaded(directory: Path) -> LoadedModel:
    return load_model(directory, device=CPU, dtype=torch.float32)


def plain_logits(model: ChunkedModel, token_ids: Sequence[int]) -> Tensor:
    """The same layers in the plainest way: softmax over all keys, of which a mask leaves some."""
    positions = torch.arange(len(token_ids))
    rope, hidden = model.rope(positions), sees(positions, positions, chunk=CHUNK).logical_not()
    x = model.embed(torch.tensor(token_ids))
    for layer in model.stack:
        q, k, v = layer.qkv(x, *rope)
        scores = torch.einsum("nhd,thd->hnt", q, k) / q.shape[-1] ** 0.5
        x = layer.finish(
            x, torch.einsum("hnt,thd->nhd", scores.masked_fill(hidden, -torch.inf).softmax(-1), v).flatten(1)
        )
    return model.logits(x)


def test_a_checkpoint_of_other_layers_is_loaded_and_answers_as_its_layers_do(loaded: LoadedModel) -> None:
    prompt, mask = prompt_of(PREFIX + USER), loaded.config.mask_token_id
    assert isinstance(loaded.model, ChunkedModel)
    logits = plain_logits(loaded.model, [*prompt, *[mask] * CANVAS])[len(prompt) :]
    logits[:, [mask, loaded.config.eos_token_id]] = -torch.inf
    asked = request_of(prompt, CANVAS, policy="none", num_steps=1, block_length=CANVAS, min_tokens=CANVAS)
    expected = tuple(logits.argmax(-1).tolist())
    assert len(set(expected)) > 4
    assert run_one(engine_of(loaded), asked).token_ids == expected


def test_requests_that_say_nothing_decode_as_the_family_does(loaded: LoadedModel) -> None:
    prompt = prompt_of(PREFIX + USER)
    said = {"unmasking": "topk_margin", "timetable": "dream"}
    plain, named, other = (
        run_one(engine_of(loaded), request_of(prompt, CANVAS, min_tokens=CANVAS, **params)).token_ids
        for params in ({}, said, {"unmasking": "low_confidence", "timetable": "quota"})
    )
    assert plain == named != other


@pytest.mark.parametrize("policy", ["prefix-naive", "bicache", "lean"])
def test_a_prefix_that_sees_nothing_behind_it_is_reused_without_loss(loaded: LoadedModel, policy: str) -> None:
    """Builds, probes and passes all mask: a prefix of whole chunks has the same states alone and in a sequence."""
    engine = engine_of(loaded, bicache=BiCacheConfig(probe_positions=PREFIX, probe_similarity=0.9999))
    params = {"num_steps": 8, "block_length": CANVAS, "min_tokens": CANVAS}
    if policy == "lean":
        params |= {"block_length": CHUNK, "anchors": 0.5}
    prompt = prompt_of(PREFIX + USER)
    reused = run_one(engine, request_of(prompt, CANVAS, prefixes=[PREFIX], policy=policy, **params))
    exact = run_one(engine_of(loaded), request_of(prompt, CANVAS, policy="none", **params | {"anchors": None}))
    assert reused.token_ids == exact.token_ids
    assert reused.usage is not None
    assert (reused.usage.prefix_tokens, reused.usage.reuse_depth) == (PREFIX, loaded.config.num_layers)


def test_a_gpu_is_refused_to_a_model_that_masks_attention(loaded: LoadedModel) -> None:
    storage = engine_of(loaded)._memory.storage
    storage = cast(Any, type("OnGpu", (), {"device": torch.device("cuda"), "rows": storage.rows}))
    with pytest.raises(UnsupportedModelError, match="chunked models mask attention"):
        factory.attention_backend(storage, loaded.config)
    factory.attention_backend(engine_of(loaded)._memory.storage, replace(loaded.config, attention_mask=None))
