"""Keeps the masked positions of one request while they are being committed. It counts positions, never mask ids."""

from __future__ import annotations

from collections.abc import Iterable

from workers.api import FinishReason
from workers.decoding.timetable import Timetable


class Canvas:
    """Records which positions are committed, with which tokens, and how many `take_committed` has returned.

    The timetable's positions begin masked; all others hold text that stays.
    """

    def __init__(
        self, timetable: Timetable, token_ids: Iterable[int], *, mask_token_id: int, eos_token_id: int
    ) -> None:
        """Take the whole sequence's `token_ids`; those at the timetable's positions don't matter."""
        self.timetable = timetable
        self.token_ids = list(token_ids)
        """The tokens of the sequence, by position."""
        self._mask, self._eos = mask_token_id, eos_token_id
        self._masked = set(timetable.positions)
        self._probabilities: dict[int, float] = {}
        self._latest: frozenset[int] = frozenset()
        self._num_taken = 0
        """Number of the timetable's positions that `take_committed` returned; these are never masked again."""
        self._ended = False
        for position in timetable.positions:
            self.token_ids[position] = mask_token_id

    def relocated(self, timetable: Timetable, token_ids: Iterable[int]) -> Canvas:
        """Return a canvas with the same progress and new fixed text; the timetables' positions correspond in order."""
        to = dict(zip(self.timetable.positions, timetable.positions, strict=True))
        canvas = Canvas(timetable, token_ids, mask_token_id=self._mask, eos_token_id=self._eos)
        for old, new in to.items():
            canvas.token_ids[new] = self.token_ids[old]
        canvas._masked = {to[position] for position in self._masked}
        canvas._probabilities = {to[position]: value for position, value in self._probabilities.items()}
        canvas._latest = frozenset(to[position] for position in self._latest)
        canvas._num_taken, canvas._ended = self._num_taken, self._ended
        return canvas

    def masked(self, positions: range) -> list[int]:
        """Return the positions that are still to be committed, ascending."""
        return [position for position in positions if position in self._masked]

    @property
    def all_masked(self) -> frozenset[int]:
        return frozenset(self._masked)

    def token_ids_without_prompt(self, rows: range) -> list[int]:
        """Return the token ids of `rows` with all given text masked: the unconditional input of guidance."""
        own = frozenset(self.timetable.positions)
        return [self.token_ids[row] if row in own else self._mask for row in rows]

    def commit(self, positions: Iterable[int], token_ids: Iterable[int], probabilities: Iterable[float] = ()) -> None:
        """Commit tokens. Their `probabilities` are needed only if `remask` may follow."""
        self._latest = frozenset(positions)
        for position, token_id in zip(positions, token_ids, strict=True):
            self._masked.remove(position)
            self.token_ids[position] = token_id
        self._probabilities.update(zip(positions, probabilities, strict=False))

    def remask(self, among: range, count: int) -> int:
        """Mask up to `count` tokens of `among` again, and return their number.

        The tokens that were least probable at their commitment come first, ties from the left. Tokens of the latest
        commitment, which no pass has seen as context yet, stay, and so do those that `take_committed` returned.
        """
        final = frozenset(self.timetable.positions[: self._num_taken])
        open_to = [p for p in self._probabilities if p in among and p not in self._masked | self._latest | final]
        chosen = sorted(open_to, key=lambda position: (self._probabilities[position], position))[:count]
        for position in chosen:
            self._masked.add(position)
            self.token_ids[position] = self._mask
        return len(chosen)

    def take_committed(self) -> tuple[int, ...]:
        """Return the tokens before EOS that have become part of the gapless committed text since the last call."""
        taken: list[int] = []
        for position in self.timetable.positions[self._num_taken :]:
            if self._ended or position in self._masked:
                break
            if self.token_ids[position] == self._eos:
                self._ended = True
            else:
                taken.append(self.token_ids[position])
        self._num_taken += len(taken)
        return tuple(taken)

    @property
    def num_taken(self) -> int:
        return self._num_taken

    @property
    def finish_reason(self) -> FinishReason | None:
        """Return STOP once EOS is committed and nothing before it is masked; LENGTH once all is filled without EOS."""
        if self._ended:
            return FinishReason.STOP
        return FinishReason.LENGTH if self._num_taken == len(self.timetable.positions) else None
