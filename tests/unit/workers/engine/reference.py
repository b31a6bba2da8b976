"""The published decoders, as plainly as they can be written: one request, dense tensors, no engine code.

Shares with the engine only the model's layers. Every function returns the whole canvas after its last step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.models.loader import LoadedModel

KV = list[tuple[Tensor, Tensor]]
"""One (K, V) [rows, heads, head_dim] a layer."""


@dataclass
class Decoder:
    """A canvas of `length` masks behind `prompt`; the first `prefix` prompt tokens are shared."""

    loaded: LoadedModel
    prompt: Sequence[int]
    length: int
    prefix: int = 0
    depth: int = 0
    interval: int = 1

    def __post_init__(self) -> None:
        config = self.loaded.config
        self.model, self.layers = self.loaded.model, config.num_layers
        self.total = len(self.prompt) + self.length
        self.tokens = torch.tensor([*self.prompt, *[config.mask_token_id] * self.length])
        self.masked = torch.zeros(self.total, dtype=torch.bool)
        self.masked[len(self.prompt) :] = True

    # --- forwards -----------------------------------------------------------------------------------------------

    def rows(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Embeddings and positions of rows start..stop-1."""
        return self.model.embed(self.tokens[start:stop]), torch.arange(start, stop)

    def layer(self, index: int, x: Tensor, positions: Tensor, before: Sequence[tuple[Tensor, Tensor]] = (),
              after: Sequence[tuple[Tensor, Tensor]] = ()) -> tuple[Tensor, tuple[Tensor, Tensor]]:  # fmt: skip
        """One layer over rows `x` that also see the K/V `before` and `after` them -> new rows, their own K/V."""
        q, k, v = self.model.stack[index].qkv(x, *self.model.rope(positions))
        keys = torch.cat([*[kv[0] for kv in before], k, *[kv[0] for kv in after]])
        values = torch.cat([*[kv[1] for kv in before], v, *[kv[1] for kv in after]])
        groups = q.shape[1] // k.shape[1]
        keys, values = keys.repeat_interleave(groups, 1), values.repeat_interleave(groups, 1)
        scores = torch.einsum("qhd,khd->hqk", q, keys) / q.shape[-1] ** 0.5
        attended = torch.einsum("hqk,khd->qhd", scores.softmax(-1), values)
        return self.model.stack[index].finish(x, attended.flatten(1)), (k, v)

    def full(self) -> tuple[Tensor, KV]:
        x, positions = self.rows(0, self.total)
        kept: KV = []
        for index in range(self.layers):
            x, kv = self.layer(index, x, positions)
            kept.append(kv)
        return self.model.logits(x), kept

    def entry(self) -> tuple[KV, list[Tensor]]:
        """The prefix alone: K/V of every layer, and the hidden states that enter every layer."""
        x, positions = self.rows(0, self.prefix)
        kept, states = [], [x]
        for index in range(self.layers):
            x, kv = self.layer(index, x, positions)
            kept.append(kv)
            states.append(x)
        return kept, states

    def refresh(
        self, start: int, stop: int, before: KV | None = None, after: KV | None = None
    ) -> tuple[Tensor, KV, KV]:
        """Rows start..stop-1 below the depth, prefix and rows from it on -> rows' logits, prefix K/V, rows' K/V.

        `before` and `after` are the stale K/V between the prefix and the rows, and behind them.
        """
        entry_kv, states = self.entry()
        x, positions = self.rows(start, stop)
        prefix_kv, own_kv = [], []
        for index in range(self.layers):
            around = ([before[index]] if before else []), ([after[index]] if after else [])
            if index == self.depth:
                x = torch.cat((states[self.depth], x))
                positions = torch.cat((torch.arange(self.prefix), positions))
            if index < self.depth:
                x, kv = self.layer(index, x, positions, [entry_kv[index], *around[0]], around[1])
                prefix_kv.append(entry_kv[index])
                own_kv.append(kv)
            else:
                # rope is in the keys, so that the order of the parts is free
                x, (k, v) = self.layer(index, x, positions, around[0], around[1])
                prefix_kv.append((k[: self.prefix], v[: self.prefix]))
                own_kv.append((k[self.prefix :], v[self.prefix :]))
        return self.model.logits(x[-(stop - start) :]), prefix_kv, own_kv

    def rest(self, start: int, stop: int, before: list[KV], after: list[KV]) -> tuple[Tensor, KV]:
        """Rows start..stop-1 in all layers against kept K/V."""
        x, positions = self.rows(start, stop)
        own_kv = []
        for index in range(self.layers):
            x, kv = self.layer(index, x, positions, [kv[index] for kv in before], [kv[index] for kv in after])
            own_kv.append(kv)
        return self.model.logits(x), own_kv

    # --- unmasking ----------------------------------------------------------------------------------------------

    def commit(self, logits: Tensor, offset: int, block: tuple[int, int], count: int) -> None:
        """Fix the `count` most confident masked positions of the block; logits are those of rows offset..."""
        scored = []
        for position in range(*block):
            if self.masked[position]:
                row = logits[position - offset].clone()
                probabilities = row.softmax(-1)
                row[self.loaded.config.mask_token_id] = -torch.inf
                token = int(row.argmax())
                scored.append((-float(probabilities[token]), position, token))
        for _, position, token in sorted(scored)[:count]:
            self.tokens[position], self.masked[position] = token, False

    def blocks(self, block_length: int, num_steps: int) -> list[tuple[tuple[int, int], list[int]]]:
        """Each block's bounds, and the quota of each of its steps."""
        starts = range(len(self.prompt), self.total, block_length)
        steps = num_steps // len(starts)
        bounds = [(start, min(start + block_length, self.total)) for start in starts]
        return [((s, e), [(e - s) // steps + (i < (e - s) % steps) for i in range(steps)]) for s, e in bounds]

    def text(self) -> tuple[int, ...]:
        """The canvas up to its first EOS."""
        canvas = self.tokens[len(self.prompt) :].tolist()
        eos = self.loaded.config.eos_token_id
        return tuple(canvas[: canvas.index(eos)] if eos in canvas else canvas)

    # --- decoders -----------------------------------------------------------------------------------------------

    def none(self, block_length: int, num_steps: int) -> tuple[int, ...]:
        for block, quotas in self.blocks(block_length, num_steps):
            for count in quotas:
                self.commit(self.full()[0], 0, block, count)
        return self.text()

    def bicache(self, num_steps: int) -> tuple[int, ...]:
        [(canvas, quotas)] = self.blocks(self.length, num_steps)
        kept: KV = []
        for step, count in enumerate(quotas):
            if step % max(1, self.interval) == 0:
                logits, kept, _ = self.refresh(self.prefix, self.total)
            else:
                logits, _ = self.rest(self.prefix, self.total, [kept], [])
            self.commit(logits, self.prefix, canvas, count)
        return self.text()

    def dual(self, block_length: int, num_steps: int) -> tuple[int, ...]:
        for (start, stop), quotas in self.blocks(block_length, num_steps):
            before: KV = []
            after: KV = []
            for step, count in enumerate(quotas):
                if step == 0:
                    logits, kept = self.full()
                    before, after = cut(kept, 0, start), cut(kept, stop, self.total)
                    logits = logits[start:stop]
                else:
                    logits, _ = self.rest(start, stop, [before], [after])
                self.commit(logits, start, (start, stop), count)
        return self.text()

    def bicache_dual(self, block_length: int, num_steps: int) -> tuple[int, ...]:
        interval, clock, kept = max(1, self.interval), 0, []
        for (start, stop), quotas in self.blocks(block_length, num_steps):
            just_refreshed = clock % interval == 0
            if just_refreshed:
                _, kept, suffix = self.refresh(self.prefix, self.total)
            else:
                _, suffix = self.rest(self.prefix, self.total, [kept], [])
            before = cut(suffix, 0, start - self.prefix)
            after = cut(suffix, stop - self.prefix, self.total - self.prefix)
            for step, count in enumerate(quotas):
                if clock % interval == 0 and not (step == 0 and just_refreshed):
                    logits, kept, _ = self.refresh(start, stop, before, after)
                else:
                    logits, _ = self.rest(start, stop, [kept, before], [after])
                self.commit(logits, start, (start, stop), count)
                clock += 1
        return self.text()

    def lean(self, block_length: int, num_steps: int) -> tuple[int, ...]:
        """`bicache_dual` whose opening pass is the block's first step, and whose refreshes fall on openings only."""
        interval, clock, kept, refreshed_at = max(1, self.interval), 0, [], -1
        for (start, stop), quotas in self.blocks(block_length, num_steps):
            if clock // interval > refreshed_at:
                refreshed_at = clock // interval
                logits, kept, suffix = self.refresh(self.prefix, self.total)
            else:
                logits, suffix = self.rest(self.prefix, self.total, [kept], [])
            self.commit(logits, self.prefix, (start, stop), quotas[0])
            before = cut(suffix, 0, start - self.prefix)
            after = cut(suffix, stop - self.prefix, self.total - self.prefix)
            for count in quotas[1:]:
                logits, _ = self.rest(start, stop, [kept, before], [after])
                self.commit(logits, start, (start, stop), count)
            clock += len(quotas)
        return self.text()


def cut(kv: KV, start: int, stop: int) -> KV:
    return [(k[start:stop], v[start:stop]) for k, v in kv]
