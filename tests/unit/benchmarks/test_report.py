"""A report records its command without paths of the machine."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks.report import ROOT, Report, command

RESULTS = ROOT / "benchmarks" / "results"


@pytest.mark.parametrize(
    ("argument", "recorded"),
    [
        (str(RESULTS / "engine.json"), "benchmarks/results/engine.json"),
        (f"--json={RESULTS / 'engine.json'}", "--json=benchmarks/results/engine.json"),
        (str(ROOT), "."),
        ("/root/out/engine.json", "engine.json"),
        ("--json=/root/out/engine.json", "--json=engine.json"),
        ("/root/seed=1/engine.json", "engine.json"),
        (str(ROOT / ".." / "elsewhere" / "engine.json"), "engine.json"),
        (f"{ROOT}-copy/engine.json", "engine.json"),
        ("results/engine.json", "results/engine.json"),
        ("lean+skip-refresh", "lean+skip-refresh"),
        ("--quick", "--quick"),
        ("", "''"),
    ],
)
def test_a_recorded_command_has_no_absolute_path(argument: str, recorded: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/root/bin/benchmark", "--json", argument])
    assert command().partition(" --json ")[2] == recorded


def test_a_script_is_recorded_without_its_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    monkeypatch.setattr(sys, "argv", [str(ROOT / "benchmarks" / "engine.py")])
    assert command() == "python benchmarks/engine.py"
    monkeypatch.setattr(sys, "argv", ["/root/bin/benchmark"])
    assert command() == "python benchmark"


def test_a_written_report_holds_the_recorded_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.json"
    monkeypatch.setattr(sys, "argv", ["benchmark", "--json", str(path)])
    Report("engine", [], [], "cpu").write(path)
    assert json.loads(path.read_text())["command"].endswith(" --json report.json")
