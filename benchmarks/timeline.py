"""Splits the time of an engine step into parts, from the events of torch's profiler (its Chrome trace).

Work is a GPU's kernels and copies, or on a CPU torch's outermost operations on the step's thread, and belongs to the
step that launched it. Its part follows from, in this order: whether the head had begun at its launch, its name, and
whether a layer launched it. Of kernels that a CUDA graph replays only their names are known.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

STEP, HEAD, LAYER = "palimpsest: step", "palimpsest: head", "palimpsest: layer"
"""Names of the ranges that a profile must mark."""

ATTENTION, PRODUCTS, BETWEEN = "attention", "matrix products", "norms, rotations, gates"
STORES, DECISIONS, REST, GAPS = "K/V stores", "head and decisions", "tables, embeddings, copies", "host gaps"
PARTS = (ATTENTION, PRODUCTS, BETWEEN, STORES, DECISIONS, REST)

NAMES: Sequence[tuple[str, re.Pattern[str]]] = (
    (ATTENTION, re.compile(r"^attend_tiles|^merge_parts|^aten::scaled_dot_product|^aten::index_select$")),
    (STORES, re.compile(r"^_store|^aten::index_copy_$")),
    (BETWEEN, re.compile(r"^_norm|^_rotate|^_gate")),
    (PRODUCTS, re.compile(r"gemm|gemv|nvjet|cutlass|cublas|xmma|split_?k|^aten::(linear|matmul|mm|addmm_?)$", re.I)),
)
ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
LAUNCHES = ("cuda_runtime", "cuda_driver")

Event = Mapping[str, Any]


@dataclass(frozen=True)
class Range:
    """A range spans microseconds on the trace's clock."""

    start: float
    stop: float

    def holds(self, moment: float) -> bool:
        return self.start <= moment < self.stop


@dataclass(frozen=True)
class Work:
    """Describes a kernel, a copy or an operation that ran."""

    name: str
    launched: float
    """Time of the launch, in microseconds on the trace's clock."""
    ms: float


@dataclass(frozen=True)
class Split:
    """Holds the mean times of the steps in a trace."""

    wall_ms: float
    """Time of a step, with the profiler's own cost."""
    ms: Mapping[str, float]
    """Time by part."""
    launches: Mapping[str, float]

    @property
    def busy_ms(self) -> float:
        return sum(self.ms.values())


def split(events: Iterable[Event], *, on_device: bool) -> Split:
    """Split the events of a trace's `traceEvents`. Raises ValueError where they mark no step."""
    complete = [event for event in events if event.get("ph") == "X"]
    marked = {name: list(ranges(complete, name)) for name in (STEP, HEAD, LAYER)}
    steps = marked[STEP]
    if not steps:
        raise ValueError("the trace has no step")
    [thread] = {event["tid"] for event in complete if is_mark(event, STEP)}
    ms: Counter[str] = Counter()
    launches: Counter[str] = Counter()
    for work in device_work(complete) if on_device else host_work(complete, thread):
        step = next((step for step in steps if step.holds(work.launched)), None)
        if step:
            part = part_of(work, step, marked[HEAD], marked[LAYER])
            ms[part] += work.ms
            launches[part] += 1
    num_steps = len(steps)
    return Split(
        wall_ms=sum(step.stop - step.start for step in steps) / 1000 / num_steps,
        ms={part: ms[part] / num_steps for part in PARTS},
        launches={part: launches[part] / num_steps for part in PARTS},
    )


def part_of(work: Work, step: Range, heads: Iterable[Range], layers: Iterable[Range]) -> str:
    if any(step.holds(head.start) and head.start <= work.launched for head in heads):
        return DECISIONS
    for part, pattern in NAMES:
        if pattern.search(work.name):
            return part
    return BETWEEN if any(layer.holds(work.launched) for layer in layers) else REST


def is_mark(event: Event, name: str) -> bool:
    return event.get("cat") == "user_annotation" and event["name"] == name


def ranges(events: Iterable[Event], name: str) -> Iterator[Range]:
    for event in events:
        if is_mark(event, name):
            yield Range(event["ts"], event["ts"] + event["dur"])


def device_work(events: Sequence[Event]) -> Iterator[Work]:
    """Yield a GPU's work, each launched by the call of its correlation; all kernels of a graph share its call."""
    calls = [event for event in events if event.get("cat") in LAUNCHES and "correlation" in event["args"]]
    launch_times = {event["args"]["correlation"]: event["ts"] for event in calls}
    for event in events:
        if event.get("cat") in ON_DEVICE:
            launched = launch_times.get(event["args"].get("correlation"), event["ts"])
            yield Work(event["name"], launched, event["dur"] / 1000)


def host_work(events: Iterable[Event], thread: int) -> Iterator[Work]:
    """Yield the thread's operations that are no part of another one."""
    end = float("-inf")
    operations = (event for event in events if event.get("cat") == "cpu_op" and event["tid"] == thread)
    for event in sorted(operations, key=lambda event: (event["ts"], -event["dur"])):
        if event["ts"] >= end:
            end = event["ts"] + event["dur"]
            yield Work(event["name"], event["ts"], event["dur"] / 1000)
