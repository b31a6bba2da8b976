"""Holds the positions to denoise, cut into blocks, and the portion of a block that each step commits."""

from __future__ import annotations

import enum
from dataclasses import dataclass

import torch

DREAM_END = 1e-3
"""The end of Dream's time, which begins at 1."""


class CommitSchedule(enum.Enum):
    """Lists the rules that decide how many tokens each step of a block commits."""

    QUOTA = "quota"
    """m masks in s steps: m // s a step, one more in the first m mod s (LLaDA's get_num_transfer_tokens)."""
    DREAM = "dream"
    """A step from time t to time s commits the share 1 - s/t of what is masked, the last step everything."""


@dataclass(frozen=True)
class Portion:
    """Holds the number of masked positions that one step commits."""

    count: int
    rate: float
    """`count` as a fraction of the masked positions, before rounding."""


@dataclass(frozen=True)
class Timetable:
    """Divides positions, in order, into blocks of equal length; the last block may be shorter.

    Every block gets num_steps // num_blocks of the steps.
    """

    positions: tuple[int, ...]
    """Positions to denoise, ascending; they need not be contiguous."""
    block_length: int
    """Positions to denoise in one block."""
    num_steps: int
    timing: CommitSchedule = CommitSchedule.QUOTA

    @property
    def num_blocks(self) -> int:
        return -(-len(self.positions) // self.block_length)

    @property
    def steps_per_block(self) -> int:
        return self.num_steps // self.num_blocks

    def block(self, index: int) -> range:
        """Return the range from a block's first to its last position; it may include fixed text."""
        own = self._positions_of(index)
        return range(own[0], own[-1] + 1)

    def portion(self, index: int, step: int, num_masked: int) -> Portion:
        """Return the portion of block `index` that its step `step` commits, of `num_masked` masked positions."""
        if self.timing is CommitSchedule.DREAM:
            return dream_portion(step, self.steps_per_block, num_masked)
        base, rest = divmod(len(self._positions_of(index)), self.steps_per_block)
        masked_after = len(self._positions_of(index)) - base * (step + 1) - min(step + 1, rest)
        count = max(0, num_masked - masked_after)
        return Portion(count, count / num_masked)

    def _positions_of(self, index: int) -> tuple[int, ...]:
        return self.positions[index * self.block_length : (index + 1) * self.block_length]


def dream_portion(step: int, num_steps: int, num_masked: int) -> Portion:
    """Return the portion that Dream's sampler commits in a step; times are evenly spaced from 1 to `DREAM_END`."""
    if step + 1 == num_steps:
        return Portion(num_masked, 1.0)
    times = torch.linspace(1, DREAM_END, num_steps + 1)
    rate = 1 - times[step + 1] / times[step]
    return Portion(int(num_masked * rate), rate.item())
