from __future__ import annotations

import pytest

from workers.api import FinishReason
from workers.scheduler.canvas import Canvas, Timetable

EOS, MASK = 8, 9


def canvas_of(length: int) -> Canvas:
    return Canvas(Timetable(2, length, length, length), [MASK, EOS], mask_token_id=MASK, eos_token_id=EOS)


@pytest.mark.parametrize(
    ("length", "block_length", "num_steps", "quotas"),
    [
        (8, 4, 4, [[2, 2], [2, 2]]),
        (8, 8, 3, [[3, 3, 2]]),
        (10, 4, 9, [[2, 1, 1], [2, 1, 1], [1, 1, 0]]),
        (1, 1, 1, [[1]]),
        (3, 3, 5, [[1, 1, 1, 0, 0]]),
    ],
)
def test_every_block_gets_its_steps_and_quota(
    length: int, block_length: int, num_steps: int, quotas: list[list[int]]
) -> None:
    timetable = Timetable(5, length, block_length, num_steps)
    blocks = [timetable.block(index) for index in range(timetable.num_blocks)]
    assert [position for block in blocks for position in block] == list(range(5, 5 + length))
    assert [
        [timetable.quota(index, step) for step in range(timetable.steps_per_block)] for index in range(len(blocks))
    ] == quotas


def test_tokens_are_handed_out_once_all_before_them_are_committed() -> None:
    canvas = canvas_of(4)
    canvas.commit([3], [1])
    assert canvas.take_committed() == ()
    canvas.commit([2], [0])
    assert canvas.take_committed() == (0, 1)
    assert canvas.take_committed() == ()
    assert canvas.masked(range(2, 6)) == [4, 5]
    canvas.commit([5, 4], [3, 2])
    assert canvas.take_committed() == (2, 3)
    assert canvas.finish_reason is FinishReason.LENGTH


def test_eos_ends_it_only_when_nothing_before_is_masked() -> None:
    canvas = canvas_of(4)
    canvas.commit([3], [EOS])
    canvas.take_committed()
    assert canvas.finish_reason is None
    canvas.commit([2], [0])
    assert canvas.take_committed() == (0,)
    assert canvas.finish_reason is FinishReason.STOP
    assert canvas.num_taken == 1
    canvas.commit([4], [5])
    assert canvas.take_committed() == ()


def test_a_position_is_committed_once() -> None:
    canvas = canvas_of(2)
    canvas.commit([2], [MASK])
    assert canvas.masked(range(2, 4)) == [3]
    with pytest.raises(KeyError):
        canvas.commit([2], [0])
