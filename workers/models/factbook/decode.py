"""The reference decoder commits a fixed number of tokens a step, with and without reuse of the prefix.

It is independent of the engine: it decodes packed batches of one branch a row, block by block, commits the most
confident tokens of a block first, and recomputes everything that the reuse policy requires.
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

    def __init__(self, model: Transformer, batch: PackedBatch, reuse: Reuse, canvas_slots: int = CANVAS) -> None:
        self._model, self._batch, self._depth = model, batch, reuse.depth
        positions, owners, self.canvas = layout(batch, canvas_slots)
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


@dataclass(frozen=True)
class Schedule:
    """A schedule sets the canvas of a branch without a fixed one, and how it is denoised, as the server does it."""

    canvas: int = CANVAS
    block: int = CANVAS
    tokens_per_step: int = 2
    max_blocks: int = 4
    """Blocks to denoise at most; an answer that has not ended by then is wrong."""


DEFAULT_SCHEDULE = Schedule()


@torch.no_grad()
def decode(
    model: Transformer,
    samples: Sequence[Sample],
    mask: int,
    reuse: Reuse,
    num_steps: int | None = None,
    schedule: Schedule = DEFAULT_SCHEDULE,
) -> Tensor:
    """Return greedy answers [B, longest canvas] to each sample's first question; slots past a canvas hold `mask`.

    Each step commits the most confident tokens of a block; `num_steps` is that of a block, by the schedule if None.
    Blocks after one with EOS in every sample stay masked, and so do those after `max_blocks`.
    """
    device, eos = next(iter(model.parameters())).device, model.config.eos_token_id
    slots = -(-max(len(sample.prefix) for sample in samples) // 64) * 64
    lens = np.full((len(samples), 1), schedule.canvas)
    given = max(len(sample.suffixes[0]) + sum(map(len, sample.tails[:1])) for sample in samples)
    canvases = [sample.canvases[0] for sample in samples if sample.canvases]
    longest = max(schedule.canvas, *(canvas or 0 for canvas in canvases), *(len(s.answers[0]) + 1 for s in samples))
    branch_slots = -(-(given + longest) // 64) * 64
    batch = pack(samples, slots, 1, mask, lens, branch_slots).to(device)
    length = int(batch.canvas_len.max())
    cache = PrefixCache(model, batch, reuse, length)
    canvas, offsets = cache.canvas[:, 0], torch.arange(length, device=device)
    is_masked = offsets < batch.canvas_len
    ids = batch.ids.scatter(1, canvas, torch.where(is_masked, mask, batch.ids.gather(1, canvas)))
    for start in range(0, length, schedule.block):
        in_block = (offsets >= start) & (offsets < start + schedule.block)
        size = min(schedule.block, length - start)
        steps = num_steps or -(-size // schedule.tokens_per_step)
        for step in range(steps):
            logits = cache.refresh(ids) if step % reuse.interval == 0 else cache.step(ids)
            logits[..., mask] = -torch.inf
            confidence, token = logits.float().softmax(-1).max(-1)
            num_chosen = -(-size // steps)
            candidates = confidence.masked_fill(~(is_masked & in_block), -1)
            best = candidates.topk(min(num_chosen, length))
            is_kept = best.values >= 0
            kept = torch.where(is_kept, token.gather(1, best.indices), ids.gather(1, canvas.gather(1, best.indices)))
            ids = ids.scatter(1, canvas.gather(1, best.indices), kept)
            is_masked = is_masked.scatter(1, best.indices, is_masked.gather(1, best.indices) & ~is_kept)
        committed = ids.gather(1, canvas).masked_fill(is_masked, mask)
        is_over = (committed == eos).any(1) | (batch.canvas_len[:, 0] <= start + schedule.block)
        if is_over.all() or start >= (schedule.max_blocks - 1) * schedule.block:
            break
    return ids.gather(1, canvas).masked_fill(offsets >= batch.canvas_len, mask)


def answers(
    model: Transformer,
    samples: Sequence[Sample],
    mask: int,
    eos: int,
    reuse: Reuse,
    batch_size: int = 128,
    schedule: Schedule = DEFAULT_SCHEDULE,
) -> list[list[int]]:
    """Return for each sample, in order, the token ids of the model's answer to its first question, without EOS."""
    order = sorted(range(len(samples)), key=lambda i: len(samples[i].prefix))
    found: list[list[int]] = [[] for _ in samples]
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        canvases = decode(model, [samples[i] for i in chosen], mask, reuse, schedule=schedule).tolist()
        for i, canvas in zip(chosen, canvases, strict=True):
            found[i] = canvas[: canvas.index(eos)] if eos in canvas else [token for token in canvas if token != mask]
    return found


def exact_matches(
    model: Transformer,
    samples: Sequence[Sample],
    mask: int,
    eos: int,
    reuse: Reuse,
    batch_size: int = 128,
    schedule: Schedule = DEFAULT_SCHEDULE,
) -> list[bool]:
    """Return for each sample, in order, whether the model answers its first question word for word."""
    found = answers(model, samples, mask, eos, reuse, batch_size, schedule)
    return [answer == sample.answers[0] for answer, sample in zip(found, samples, strict=True)]
