from __future__ import annotations

from pathlib import Path

import pytest

from workers.models.factbook.decode import Reuse
from workers.models.factbook.evaluate import bars, recorded_command, score_row
from workers.models.factbook.samples import Sample
from workers.models.factbook.suites import Suite

ROOT = Path(__file__).resolve().parents[4]


@pytest.mark.parametrize(
    ("argument", "recorded"),
    [
        (f"{ROOT}/workers/models/factbook/checkpoints/factbook", "workers/models/factbook/checkpoints/factbook"),
        (f"--json={ROOT}/benchmarks/results/factbook.json", "--json=benchmarks/results/factbook.json"),
        (f"{ROOT}/docs/../benchmarks", "benchmarks"),
        (f"{ROOT}-elsewhere/factbook", "factbook"),
        ("/home/someone/runs/factbook", "factbook"),
        ("--json=/home/someone/results.json", "--json=results.json"),
        ("checkpoints/factbook", "checkpoints/factbook"),
        ("--count", "--count"),
        ("--count=2000", "--count=2000"),
        ("2000", "2000"),
    ],
)
def test_a_recorded_command_names_no_directory_of_the_machine(argument: str, recorded: str) -> None:
    assert recorded_command(["a", argument]) == f"python -m workers.models.factbook.evaluate a {recorded}"


def test_a_row_counts_matches_by_group_and_bars_hold_their_bounds() -> None:
    sample = Sample([1], [[2]], [[3]], [], 4, [])
    suite = Suite("turns, cut behind the sheet", [sample] * 4, {"by_turn": ["turn 1", "turn 1", "turn 2", "turn 2"]})
    exact = score_row("factbook", suite, Reuse(), [[3], [3], [3], [4]])
    reused = score_row("factbook", suite, Reuse(6, 16), [[3], [3], [4], []])
    assert exact["exact_match"] == 0.75
    assert exact["by_turn"] == {"turn 1": [1.0, 2], "turn 2": [0.5, 2]}
    held = {bar["name"]: bar["holds"] for bar in bars([exact, reused])}
    assert held == {
        "factbook: turns, cut behind the sheet, turn 1": True,
        "factbook: turns, cut behind the sheet, turn 2": False,
        "factbook: turns, cut behind the sheet at depth 6": False,
    }


def test_a_row_counts_answers_in_which_all_words_are_spelled_right() -> None:
    samples = [Sample([1], [[2]], [[7, 8, 9]], [], 4, [])] * 3
    suite = Suite("made-up names", samples, {"by_letters": ["3-6"] * 3}, words=[[[7, 8]], [[7, 8], [9]], [[8, 9]]])

    row = score_row("factbook", suite, Reuse(), [[7, 8], [7, 8, 5], [5, 8, 9]])

    assert row["exact_match"] == 0
    assert row["words_right"] == pytest.approx(2 / 3)
    assert {bar["name"]: bar["holds"] for bar in bars([row])} == {
        "factbook: made-up names spelled right at depth 0": False
    }
