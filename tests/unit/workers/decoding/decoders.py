"""Whole decodings, as plainly as they can be written: one request, dense forwards, the rules of `reference`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tests.unit.workers.decoding.reference import Draws, Rules, softmax
from tests.unit.workers.engine.reference import KV, Decoder, cut
from workers.decoding.rules import Unmasking
from workers.models.loader import LoadedModel

Pace = Callable[[int, int, int], tuple[int, float]]
"""(step, masked positions, all positions of the block) -> (count, rate)"""


def quota(num_steps: int) -> Pace:
    """LLaDA's: a fixed list of counts, and whatever was masked again on top."""

    def pace(step: int, num_masked: int, num_positions: int) -> tuple[int, float]:
        counts = [num_positions // num_steps + (i < num_positions % num_steps) for i in range(num_steps)]
        count = max(0, num_masked - sum(counts[step + 1 :]))
        return count, count / num_masked

    return pace


def dream(num_steps: int) -> Pace:
    """Dream's, after its published loop."""

    def pace(step: int, num_masked: int, _: int) -> tuple[int, float]:
        times = torch.linspace(1, 1e-3, num_steps + 1)
        share = 1 - times[step + 1] / times[step]
        return (num_masked, 1.0) if step == num_steps - 1 else (int(torch.tensor(float(num_masked)) * share), share)

    return pace


@dataclass
class Denoiser:
    """A sequence whose positions `fills` are to be denoised."""

    loaded: LoadedModel
    token_ids: list[int]
    fills: list[int]
    rules: Rules
    seed: int = 0
    keeps_kv: bool = False
    """Fast-dLLM's dual cache, instead of a whole forward a step."""
    num_steps: int = 0
    probabilities: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.mask = self.loaded.config.mask_token_id
        self.dense = Decoder(self.loaded, self.token_ids, 0)
        self.dense.tokens[self.fills] = self.mask
        self.masked = set(self.fills)
        self.generator = torch.Generator().manual_seed(self.seed)

    def decode(self, block_length: int, pace: Pace) -> tuple[int, ...]:
        """The filled positions' tokens, up to EOS."""
        for start in range(0, len(self.fills), block_length):
            self._denoise(self.fills[start : start + block_length], pace)
        filled = self.dense.tokens[self.fills].tolist()
        eos = self.loaded.config.eos_token_id
        return tuple(filled[: filled.index(eos)] if eos in filled else filled)

    def _denoise(self, block: list[int], pace: Pace) -> None:
        kept: KV = []
        for step in range(len(block) * 100):
            asked = [position for position in block if position in self.masked]
            if not asked:
                return
            if not (self.keeps_kv and step):
                logits, kept = self.dense.full()
                logits = self._guided(logits)
            else:
                start, stop = max(0, block[0] - self.shift), block[-1] + 1
                before, after = cut(kept, 0, start), cut(kept, stop, self.dense.total)
                inside, _ = self.dense.rest(start, stop, [before], [after])
                logits = torch.nn.functional.pad(inside, (0, 0, start, 0))
            self._commit(logits[[max(0, position - self.shift) for position in asked]], asked, block, step, pace)
            self.num_steps += 1

    def _commit(self, logits: Tensor, asked: list[int], block: list[int], step: int, pace: Pace) -> None:
        decoding = self.rules.decoding
        count, rate = pace(step, len(asked), len(block))
        done = self.rules.commit(logits.tolist(), asked, count, rate, self._draws(logits))
        for position, token in done:
            row = self.rules.biased(logits[asked.index(position)].tolist(), position)
            self.probabilities[position] = softmax(row)[token]
            self.dense.tokens[position] = token
            self.masked.remove(position)
        final = next((i for i, position in enumerate(self.fills) if position in self.masked), len(self.fills))
        revisable = set(block) - self.masked - set(self.fills[:final]) - {position for position, _ in done}
        if set(block) & self.masked:
            for position in sorted(revisable, key=lambda p: (self.probabilities[p], p))[: decoding.remask]:
                self.dense.tokens[position] = self.mask
                self.masked.add(position)

    def _guided(self, conditional: Tensor) -> Tensor:
        weight = self.rules.decoding.guidance
        if not weight:
            return conditional
        tokens = self.dense.tokens.clone()
        given = [i for i in range(self.dense.total) if i not in self.fills]
        self.dense.tokens[given] = self.mask
        unconditional, _ = self.dense.full()
        self.dense.tokens = tokens
        return unconditional + (weight + 1) * (conditional - unconditional)

    def _draws(self, logits: Tensor) -> Draws:
        decoding, wide = self.rules.decoding, torch.float64
        by_chance = decoding.unmasking in {Unmasking.RANDOM, Unmasking.ORIGIN}
        tokens = torch.rand(logits.shape, dtype=wide, generator=self.generator) if decoding.temperature else None
        rows = torch.rand(len(logits), dtype=wide, generator=self.generator) if by_chance else None
        return Draws([] if tokens is None else tokens.tolist(), () if rows is None else rows.tolist())

    @property
    def shift(self) -> int:
        return self.loaded.config.prediction_shift
