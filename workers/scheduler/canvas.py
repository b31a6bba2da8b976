"""The masked output region of one request, and the timetable by which it is denoised. Positions, never mask ids."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from workers.api import FinishReason


@dataclass(frozen=True)
class Timetable:
    """A canvas cut into blocks, the last one shorter where they don't divide it, and the steps of each block.

    Of `num_steps`, every block gets num_steps // num_blocks.
    """

    start: int
    """First canvas position."""
    length: int
    block_length: int
    num_steps: int

    @property
    def num_blocks(self) -> int:
        return -(-self.length // self.block_length)

    @property
    def steps_per_block(self) -> int:
        return self.num_steps // self.num_blocks

    def block(self, index: int) -> range:
        first = self.start + index * self.block_length
        return range(first, min(first + self.block_length, self.start + self.length))

    def quota(self, index: int, step: int) -> int:
        """Tokens to commit: m // s, one more in the first m mod s steps (LLaDA's get_num_transfer_tokens)."""
        base, rest = divmod(len(self.block(index)), self.steps_per_block)
        return base + (step < rest)


class Canvas:
    """Which positions are committed, to what, and how much of it was handed out."""

    def __init__(self, timetable: Timetable, prompt: Iterable[int], *, mask_token_id: int, eos_token_id: int) -> None:
        self.timetable = timetable
        self.token_ids = [*prompt, *[mask_token_id] * timetable.length]
        """Prompt and canvas, by position."""
        self._eos = eos_token_id
        self._masked = set(range(timetable.start, timetable.start + timetable.length))
        self._frontier = timetable.start
        """First position that isn't handed out yet; everything before it is committed."""
        self._ended = False

    def masked(self, positions: range) -> list[int]:
        """The positions still to be committed, ascending."""
        return [position for position in positions if position in self._masked]

    @property
    def all_masked(self) -> frozenset[int]:
        return frozenset(self._masked)

    def commit(self, positions: Iterable[int], token_ids: Iterable[int]) -> None:
        for position, token_id in zip(positions, token_ids, strict=True):
            self._masked.remove(position)
            self.token_ids[position] = token_id

    def take_committed(self) -> tuple[int, ...]:
        """Tokens committed in order since the last call, up to and without EOS."""
        taken: list[int] = []
        while not self._ended and self._frontier < len(self.token_ids) and self._frontier not in self._masked:
            token_id = self.token_ids[self._frontier]
            if token_id == self._eos:
                self._ended = True
            else:
                taken.append(token_id)
                self._frontier += 1
        return tuple(taken)

    @property
    def num_taken(self) -> int:
        return self._frontier - self.timetable.start

    @property
    def finish_reason(self) -> FinishReason | None:
        """STOP once EOS is committed with nothing masked before it, LENGTH once the canvas is full without one."""
        if self._ended:
            return FinishReason.STOP
        return FinishReason.LENGTH if self._frontier == len(self.token_ids) else None
