from __future__ import annotations

import pytest

from workers.api import FinishReason
from workers.decoding.canvas import Canvas
from workers.decoding.timetable import Timetable

EOS, MASK = 8, 9


def canvas_of(length: int) -> Canvas:
    timetable = Timetable(tuple(range(2, 2 + length)), length, length)
    return Canvas(timetable, [MASK, EOS, *[0] * length], mask_token_id=MASK, eos_token_id=EOS)


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


def test_holes_are_filled_around_the_text_between_them() -> None:
    canvas = Canvas(Timetable((1, 4), 2, 2), [5, 6, 7, MASK, 6, 5], mask_token_id=MASK, eos_token_id=EOS)
    assert canvas.token_ids == [5, MASK, 7, MASK, MASK, 5]
    assert canvas.masked(range(6)) == [1, 4]
    assert canvas.token_ids_without_prompt(range(6)) == [MASK] * 6
    canvas.commit([4], [2])
    assert canvas.take_committed() == ()
    assert canvas.token_ids_without_prompt(range(6)) == [MASK, MASK, MASK, MASK, 2, MASK]
    canvas.commit([1], [3])
    assert canvas.take_committed() == (3, 2)
    assert canvas.finish_reason is FinishReason.LENGTH
    assert canvas.token_ids == [5, 3, 7, MASK, 2, 5]


def test_the_least_probable_tokens_are_masked_again() -> None:
    canvas = canvas_of(6)
    canvas.commit([7, 4, 5], [1, 2, 3], [0.3, 0.2, 0.2])
    canvas.commit([3], [0], [0.1])
    assert canvas.remask(range(2, 8), 2) == 2  # 3 is the latest, and 4 and 5 are tied
    assert canvas.masked(range(2, 8)) == [2, 4, 5, 6]
    assert canvas.token_ids[4] == canvas.token_ids[5] == MASK
    canvas.commit([4], [1], [0.9])
    assert canvas.remask(range(2, 6), 2) == 1
    assert canvas.masked(range(2, 8)) == [2, 3, 5, 6]


def test_what_was_handed_out_is_never_masked_again() -> None:
    canvas = canvas_of(4)
    canvas.commit([2, 4], [1, 1], [0.1, 0.5])
    assert canvas.take_committed() == (1,)
    canvas.commit([5], [1], [0.5])
    assert canvas.remask(range(2, 6), 4) == 1
    assert canvas.masked(range(2, 6)) == [3, 4]
