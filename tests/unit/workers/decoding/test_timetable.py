from __future__ import annotations

import pytest
import torch

from workers.decoding.timetable import CommitSchedule, Portion, Timetable


@pytest.mark.parametrize(
    ("length", "block_length", "num_steps", "quotas"),
    [
        (8, 4, 4, [[2, 2], [2, 2]]),
        (8, 8, 3, [[3, 3, 2]]),
        (10, 4, 9, [[2, 1, 1], [2, 1, 1], [1, 1]]),
        (1, 1, 1, [[1]]),
        (3, 3, 5, [[1, 1, 1]]),
    ],
)
def test_every_block_gets_its_steps_and_quota(
    length: int, block_length: int, num_steps: int, quotas: list[list[int]]
) -> None:
    timetable = Timetable(tuple(range(5, 5 + length)), block_length, num_steps)
    blocks = [timetable.block(index) for index in range(timetable.num_blocks)]
    assert [position for block in blocks for position in block] == list(range(5, 5 + length))
    taken = []
    for index, block in enumerate(blocks):
        num_masked, counts = len(block), []
        while num_masked:
            portion = timetable.portion(index, len(counts), num_masked)
            assert portion.rate == portion.count / num_masked
            counts.append(portion.count)
            num_masked -= portion.count
        taken.append(counts)
    assert taken == quotas


def test_blocks_hold_equally_many_positions_whatever_lies_between() -> None:
    timetable = Timetable((1, 2, 9, 20, 21), 2, 6)
    assert [timetable.block(index) for index in range(3)] == [range(1, 3), range(9, 21), range(21, 22)]
    assert timetable.portion(1, 0, 2).count == 1


def test_a_quota_makes_up_for_what_was_masked_again_and_for_what_came_early() -> None:
    timetable = Timetable(tuple(range(8)), 8, 4)
    assert timetable.portion(0, 1, 7).count == 3
    assert timetable.portion(0, 1, 3) == Portion(0, 0.0)
    assert timetable.portion(0, 3, 5).count == 5


@pytest.mark.parametrize(("length", "num_steps"), [(32, 16), (7, 7), (64, 5), (3, 20), (1, 1)])
def test_dreams_timetable_is_dreams(length: int, num_steps: int) -> None:
    """Written after its published loop, step by step."""
    timetable = Timetable(tuple(range(length)), length, num_steps, CommitSchedule.DREAM)
    times = torch.linspace(1, 1e-3, num_steps + 1)
    masked = torch.tensor([length], dtype=torch.int64)
    for step in range(num_steps):
        t, s = times[step], times[step + 1]
        mean = masked.sum() / 1
        expected = int(mean * (1 - s / t)) if step < num_steps - 1 else int(mean)
        portion = timetable.portion(0, step, int(masked))
        assert portion.count == expected
        assert portion.rate == (1.0 if step == num_steps - 1 else float(1 - s / t))
        masked -= expected
    assert int(masked) == 0
