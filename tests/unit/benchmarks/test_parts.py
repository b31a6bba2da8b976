"""Several runs measure the engine's grid in parts and make one report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer

from benchmarks.engine import main
from benchmarks.grid import Grid, Sharing
from benchmarks.load import Workload
from benchmarks.parts import Parts, PartsError
from benchmarks.report import Row
from benchmarks.rooflines import judge

EACH = {"canvas_tokens_per_s", "ms_per_step", "ms_per_forward", "tflops", "roofline", "peak_pages_gib"}


def row(policy: str, batch: int = 16, *, part: int = 1, speed: float = 1.0) -> Row:
    where = {"model": "m", "prefix": 2048, "batch": batch, "prefixes": 1}
    return {"policy": policy, **where, "part": part, "canvas_tokens_per_s": speed, "roofline": 0.6}


def ceiling(part: int) -> Row:
    return {"policy": "ceiling: copying, GB/s", "ceiling": 1.0, "part": part}


def measure(path: Path, *, batch: list[int], append: bool = False, **options: Any) -> dict[str, Any]:
    """Measure the bundled model on this CPU, as briefly as possible."""
    main(
        json=path,
        model="factbook",
        device="cpu",
        rooflines=True,
        prefix=[64],
        batch=batch,
        policy=["none", "lean"],
        append=append,
        seconds=0,
        warm_up=0,
        **options,
    )
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def workloads_of(report: dict[str, Any]) -> list[tuple[str, int, int]]:
    return [(one["policy"], one["batch"], one["prefixes"]) for one in report["rows"] if "ceiling" not in one]


def test_the_grid_has_every_combination_and_the_bars_first() -> None:
    found = list(Grid().workloads())
    assert len(found) == len(set(found)) == 4 * (1 + 2 + 3 + 3)
    assert found[:3] == [Workload(2048, 64, 1), Workload(2048, 16, 1), Workload(2048, 1, 1)]
    assert set(Grid().policy) == {
        "none",
        "dual",
        "bicache",
        "bicache-dual",
        "lean",
        "lean+anchors",
        "lean+skip-refresh",
    }
    for prefix in (512, 1024, 2048, 3500):
        assert {Workload(prefix, 64, count) for count in (1, 4, 64)} <= set(found)


def test_two_runs_make_one_report(tmp_path: Path) -> None:
    path = tmp_path / "grid.json"
    first = measure(path, batch=[1])
    both = measure(path, batch=[2, 1], append=True, prefixes=[Sharing.ONE, Sharing.DISTINCT])
    assert workloads_of(both) == [
        ("none", 1, 1),
        ("lean", 1, 1),
        *[(policy, 2, count) for count in (1, 2) for policy in ("none", "lean")],
    ]
    assert both["rows"][:4] == first["rows"]
    assert [one["part"] for one in both["rows"] if "ceiling" in one] == [1, 1, 2, 2]
    assert [one["part"] for one in both["parts"]] == [1, 2]
    assert both["parts"][0]["command"] == first["command"]
    measured = [one for one in both["rows"] if "ceiling" not in one]
    assert all(set(one) >= EACH for one in measured)
    assert all(("miss_ms" in one) == (one["policy"] == "lean") for one in measured)
    written = path.read_text()
    measure(path, batch=[1], append=True)
    assert path.read_text() == written


def test_an_interrupted_workload_is_measured_again_with_all_policies() -> None:
    interrupted = Parts("gpu", ({"part": 1},), (ceiling(1), row("none", 64), row("none", 16), row("lean", 64)))
    grid = Grid((2048,), (64, 16), (Sharing.ONE,), ("none", "lean"))
    assert list(grid.missing("m", interrupted)) == [(Workload(2048, 16, 1), ("none", "lean"))]
    assert len(list(grid.missing("another", interrupted))) == 2
    joined = interrupted.join([ceiling(2), row("none", 16, speed=2.0), row("lean", 16)])
    assert [(one["policy"], one.get("batch"), one["part"]) for one in joined] == [
        ("ceiling: copying, GB/s", None, 1),
        ("none", 64, 1),
        ("lean", 64, 1),
        ("ceiling: copying, GB/s", None, 2),
        ("none", 16, 2),
        ("lean", 16, 2),
    ]


def test_a_part_without_rows_leaves_no_ceilings() -> None:
    parts = Parts("gpu", ({"part": 1}, {"part": 2}), (ceiling(1), row("none"), ceiling(2)))
    joined = parts.join([ceiling(3), row("none")])
    assert {one["part"] for one in joined} == {3}
    assert [part["part"] for part in parts.origins(joined)] == [3]


def test_bars_compare_within_a_part_alone() -> None:
    apart = [row("none", speed=1.0), row("lean", part=2, speed=20.0)]
    assert [bar.name for bar in judge(apart)] == ["batch 16: lean, share of its roofline"]
    together = [row("none", part=2, speed=1.0), row("lean", part=2, speed=20.0), row("dual", part=1)]
    assert [(bar.name, bar.value) for bar in judge(together)][1:] == [("batch 16: lean against none", 20.0)]


def test_a_report_of_another_device_or_without_parts_cannot_be_continued(tmp_path: Path) -> None:
    path = tmp_path / "grid.json"
    path.write_text(json.dumps({"device": "A", "rows": [row("none")], "parts": [{"part": 1}]}))
    assert Parts.read(path, "A").number == 2
    with pytest.raises(PartsError, match="measured on A, this is B"):
        Parts.read(path, "B")
    path.write_text(json.dumps({"device": "A", "rows": [{"policy": "none"}]}))
    with pytest.raises(PartsError, match="name a new file"):
        Parts.read(path, "A")


def test_what_does_not_fit_the_model_or_the_benchmark_is_refused() -> None:
    with pytest.raises(typer.BadParameter, match="exceed factbook's context of 2048"):
        main(model="factbook", device="cpu", rooflines=True, prefix=[1800])
    with pytest.raises(typer.BadParameter, match="'lane' is unknown; choose among none, "):
        main(model="factbook", device="cpu", rooflines=True, policy=["lane"])
    with pytest.raises(typer.BadParameter, match="needs --json"):
        main(model="factbook", device="cpu", rooflines=True, append=True)
    with pytest.raises(typer.BadParameter, match="is for --rooflines"):
        main(model="factbook", device="cpu", batch=[4])
