from __future__ import annotations

from pathlib import Path

import pytest

from workers.models.factbook.evaluate import recorded_command

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
