"""The reference decoder commits a fixed number of tokens a step, with and without reuse of the prefix.

It is independent of the engine: it decodes packed batches of one branch a row, commits the most confident tokens first,
and recomputes everything that the reuse policy requires.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from workers.models.factbook.branches import PackedBatch, layout, pack
from workers.models.factbook.samples import CANVAS, Sample
from workers.models.layers import Transformer


@dataclass(frozen=True)
class Reuse:
    """States how the prefix is computed.

    The first `depth` layers use K/V of the prefix alone. The deeper ones are recomputed over the whole sequence every
    `interval` steps and keep the prefix's K/V in between. Depth 0 with interval 1 means no cache.
    """

    depth: int = 0
    interval: int = 1


class PrefixCache:
    """Keeps each layer's prefix K/V and refreshes them."""

    def __init__(self, model: Transformer, batch: PackedBatch, reuse: Reuse) -> None:
        self._model, self._batch, self._depth = model, batch, reuse.depth
        positions, owners, self.canvas = layout(batch)
        self._slots = batch.prefix_slots
        self._cos, self._sin = model.rope(positions)
        self._valid = owners >= 0
        self._kept: list[tuple[Tensor, Tensor]] = []

    def refresh(self, ids: Tensor) -> Tensor:
        """Run the whole sequence, keep the prefix's K/V and return the canvas logits [B, CANVAS, vocab]."""
        x = self._model.embed(ids)
        self._kept = []
        in_prefix = torch.arange(ids.shape[1], device=ids.device).unsqueeze(1) < self._slots
        whole = self._valid[:, None, None, :]
        alone = whole & ~(in_prefix & ~in_prefix.T)
        for index, layer in enumerate(self._model.stack):
            q, k, v = layer.qkv(x, self._cos, self._sin)
            self._kept.append((k[:, : self._slots], v[:, : self._slots]))
            x = layer.finish(x, _attend(q, k, v, alone if index < self._depth else whole))
        return self._canvas_logits(x, 0)

    def step(self, ids: Tensor) -> Tensor:
        """Run the suffix alone against the kept K/V and return the canvas logits [B, CANVAS, vocab]."""
        x = self._model.embed(ids[:, self._slots :])
        cos, sin = self._cos[:, self._slots :], self._sin[:, self._slots :]
        for layer, (kept_k, kept_v) in zip(self._model.stack, self._kept, strict=True):
            q, k, v = layer.qkv(x, cos, sin)
            k, v = torch.cat((kept_k, k), 1), torch.cat((kept_v, v), 1)
            x = layer.finish(x, _attend(q, k, v, self._valid[:, None, None, :]))
        return self._canvas_logits(x, self._slots)

    def _canvas_logits(self, x: Tensor, first_slot: int) -> Tensor:
        index = (self.canvas[:, 0] - first_slot).unsqueeze(-1).expand(-1, -1, x.shape[-1])
        return self._model.logits(x.gather(1, index))


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    mask = mask.expand(-1, -1, q.shape[2], -1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(-2)


@torch.no_grad()
def decode(model: Transformer, samples: Sequence[Sample], mask: int, reuse: Reuse, num_steps: int = 16) -> Tensor:
    """Return greedy answers [B, CANVAS] to each sample's first question, CANVAS // num_steps tokens a step."""
    device = next(iter(model.parameters())).device
    slots = -(-max(len(sample.prefix) for sample in samples) // 64) * 64
    batch = pack(samples, slots, 1, mask, np.full((len(samples), 1), CANVAS)).to(device)
    cache = PrefixCache(model, batch, reuse)
    canvas = cache.canvas[:, 0]
    ids = batch.ids.scatter(1, canvas, mask)
    is_masked = torch.ones_like(canvas, dtype=torch.bool)
    for step in range(num_steps):
        logits = cache.refresh(ids) if step % reuse.interval == 0 else cache.step(ids)
        confidence, token = logits.float().softmax(-1).max(-1)
        chosen = confidence.masked_fill(~is_masked, -1).topk(CANVAS // num_steps).indices
        ids = ids.scatter(1, canvas.gather(1, chosen), token.gather(1, chosen))
        is_masked = is_masked.scatter(1, chosen, value=False)
    return ids.gather(1, canvas)


def exact_matches(
    model: Transformer, samples: Sequence[Sample], mask: int, eos: int, reuse: Reuse, batch_size: int = 128
) -> list[bool]:
    """Return for each sample, in order, whether the model answers its first question word for word."""
    order = sorted(range(len(samples)), key=lambda i: len(samples[i].prefix))
    is_match = [False] * len(samples)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        answers = decode(model, [samples[i] for i in chosen], mask, reuse).tolist()
        for i, answer in zip(chosen, answers, strict=True):
            text = answer[: answer.index(eos)] if eos in answer else answer
            is_match[i] = text == samples[i].answers[0]
    return is_match
