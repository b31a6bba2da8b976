"""A step's time is split by part."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from rich.progress import Progress

from benchmarks import timeline
from benchmarks.drive import Platform
from benchmarks.load import Workload
from benchmarks.step_profile import INSIDE, OPENING, WHOLE, Bench
from benchmarks.timeline import HEAD, LAYER, STEP, split

THREAD = 7


def event(cat: str, name: str, ts: float, dur: float, **args: int) -> dict[str, Any]:
    return {"ph": "X", "cat": cat, "name": name, "ts": ts, "dur": dur, "tid": THREAD, "args": args}


def test_kernels_belong_to_the_step_and_the_part_that_launched_them() -> None:
    """Kernels run after their launch, as in a GPU's trace, and those of a graph share one correlation."""
    events = [
        event("user_annotation", STEP, 100, 900),
        event("user_annotation", LAYER, 110, 20),
        event("user_annotation", HEAD, 400, 50),
        event("cuda_runtime", "cudaLaunchKernel", 50, 5, correlation=1),
        event("kernel", "attend_tiles", 60, 1000, correlation=1),  # before the step
        event("cuda_runtime", "cudaLaunchKernel", 115, 5, correlation=2),
        event("kernel", "void at::native::elementwise_kernel", 500, 20, correlation=2),  # in a layer, late
        event("cuda_runtime", "cudaGraphLaunch", 200, 5, correlation=3),
        event("kernel", "nvjet_tst_64x8", 520, 100, correlation=3),
        event("kernel", "_norm", 620, 5, correlation=3),
        event("kernel", "_store", 625, 7, correlation=3),
        event("kernel", "attend_tiles", 632, 50, correlation=3),
        event("kernel", "merge_parts", 682, 10, correlation=3),
        event("cuda_driver", "cuLaunchKernelEx", 300, 5, correlation=4),
        event("gpu_memcpy", "Memcpy HtoD", 692, 3, correlation=4),
        event("cuda_driver", "cuLaunchKernelEx", 410, 5, correlation=5),
        event("kernel", "nvjet_tst_128x8", 700, 40, correlation=5),  # the head's product
        event("cuda_runtime", "cudaLaunchKernel", 480, 5, correlation=6),
        event("kernel", "softmax", 740, 30, correlation=6),  # after it
        event("gpu_user_annotation", STEP, 500, 270),
        {"ph": "M", "name": "process_name"},
    ]
    found = split(events, on_device=True)
    assert found.wall_ms == 0.9
    assert found.ms == pytest.approx(
        {
            timeline.ATTENTION: 0.06,
            timeline.PRODUCTS: 0.1,
            timeline.BETWEEN: 0.025,
            timeline.STORES: 0.007,
            timeline.DECISIONS: 0.07,
            timeline.REST: 0.003,
        }
    )
    assert found.launches[timeline.ATTENTION] == 2


def test_operations_on_the_host_count_once_and_on_the_steps_thread() -> None:
    events = [
        event("user_annotation", STEP, 0, 100),
        event("user_annotation", STEP, 200, 100),
        event("cpu_op", "aten::linear", 10, 40),
        event("cpu_op", "aten::mm", 12, 30),  # part of it
        event("cpu_op", "aten::index_copy_", 210, 20),
        {**event("cpu_op", "aten::mm", 20, 50), "tid": THREAD + 1},
    ]
    found = split(events, on_device=False)
    assert found.wall_ms == 0.1
    assert (found.ms[timeline.PRODUCTS], found.ms[timeline.STORES]) == (0.02, 0.01)
    assert found.busy_ms == pytest.approx(0.03)


def test_a_trace_without_a_step_is_refused() -> None:
    with pytest.raises(ValueError, match="no step"):
        split([event("cpu_op", "aten::mm", 0, 1)], on_device=False)


def test_the_bundled_models_steps_are_split_into_all_their_parts() -> None:
    platform = Platform(torch.device("cpu"), torch.float32)
    bench = Bench(platform.load("factbook"), platform, Workload(64, 2, 1, ends_early=True))
    with Progress(disable=True) as progress:
        rows = list(bench.rows(2, progress))
    for step, requests, num_rows in ((INSIDE, 2, 64), (OPENING, 1, 64 + 320)):
        own = [row for row in rows if row["step"] == step]
        assert {(row["requests"], row["rows"]) for row in own} == {(requests, num_rows)}
        whole = next(row for row in own if row["part"] == WHOLE)
        parts = {row["part"]: row for row in own if row["part"] != WHOLE}
        assert set(parts) == {*timeline.PARTS, timeline.GAPS}
        assert sum(row["ms"] for row in parts.values()) == pytest.approx(whole["ms"])
        assert all(row["ms"] > 0 for row in parts.values())
        num_layers = 12
        assert parts[timeline.PRODUCTS]["launches"] == 7 * num_layers
        assert parts[timeline.STORES]["launches"] == 2 * num_layers
        assert parts[timeline.DECISIONS]["launches"] > 2
