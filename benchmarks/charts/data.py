"""Selects what each chart shows from the committed results."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from benchmarks.charts.chart import Bound, Chart, Kind, Panel, Point, Series
from benchmarks.grid import BAR_PREFIX
from benchmarks.report import Row

POLICIES = (
    "none",
    "prefix-naive",
    "bicache",
    "dual",
    "bicache-dual",
    "lean",
    "lean+anchors",
    "lean+skip-refresh",
)
WITHOUT_ROOFLINE = ("bicache", "bicache-dual", "lean+skip-refresh")
"""Policies whose counted FLOPs differ from those that ran.

The published code computes logits that the engine doesn't, and with random weights the engine never skips a refresh.
"""

WITHOUT_TABLE = ("none", "dual", "prefix-naive")
"""Policies whose answers no depth table decides."""

Report = Mapping[str, Any]


@dataclass(frozen=True)
class Source:
    """Names the files of results from which a chart is made."""

    files: tuple[str, ...]
    chart: Callable[..., Chart]

    def read(self, results: Path) -> Chart:
        return self.chart(*(json.loads((results / name).read_text()) for name in self.files))


def times(ratio: float) -> str:
    return f"{ratio:.1f}×" if ratio < 9.95 else f"{ratio:.0f}×"


def series_of(
    rows: Iterable[Row], names: Sequence[str], column: str, point: Callable[[Row], Point]
) -> Iterator[Series]:
    """Yield a series for each of `names` that has rows, sorted by x."""
    rows = list(rows)
    for name in names:
        points = [point(row) for row in rows if row.get(column) == name]
        if points:
            yield Series(name, tuple(sorted(points, key=lambda point: point.x)))


def at_the_bars(report: Report) -> list[Row]:
    """Return the rows of one prefix of the bars' length."""
    return [row for row in report["rows"] if row.get("prefix") == BAR_PREFIX and row.get("prefixes") == 1]


def speed_by_batch(engine: Report) -> Chart:
    rows = at_the_bars(engine)
    plain = {(row["batch"], row.get("part")): row for row in rows if row["policy"] == "none"}

    def gain(row: Row) -> float | None:
        base = plain.get((row["batch"], row.get("part")))
        return row["canvas_tokens_per_s"] / base["canvas_tokens_per_s"] if base else None

    def point(row: Row) -> Point:
        ratio = gain(row)
        return Point(row["batch"], row["canvas_tokens_per_s"], label=times(ratio) if ratio else "")

    best, where = max((gain(row) or 0.0, row["batch"]) for row in rows if row["policy"] == "lean")
    return Chart(
        "speed-by-batch",
        Kind.BARS,
        f"At batch {where}, lean makes {times(best)} the tokens a second of none",
        f"LLaDA-8B's dimensions, prefix of {BAR_PREFIX:,} tokens, {engine['device']}; above each bar: times none",
        "requests at a time",
        "canvas tokens a second",
        (Panel(tuple(series_of(rows, POLICIES, "policy", point))),),
    )


def roofline_share(engine: Report) -> Chart:
    rows = [row for row in at_the_bars(engine) if "roofline" in row and row["policy"] not in WITHOUT_ROOFLINE]

    def point(row: Row) -> Point:
        return Point(row["batch"], 100 * row["roofline"], label=f"{100 * row['roofline']:.0f}")

    best, where = max((row["roofline"], row["batch"]) for row in rows if row["policy"] == "lean")
    return Chart(
        "roofline",
        Kind.BARS,
        f"lean reaches {100 * best:.0f} % of its roofline at batch {where}",
        f"LLaDA-8B's dimensions, prefix of {BAR_PREFIX:,} tokens, {engine['device']}; roofline: each policy's FLOPs "
        "at the measured matrix product",
        "requests at a time",
        "share of the roofline, %",
        (Panel(tuple(series_of(rows, POLICIES, "policy", point))),),
        Bound(55, "asked of lean"),
    )


def speed_by_prefix(engine: Report) -> Chart:
    batch = 16
    rows = [row for row in engine["rows"] if row.get("batch") == batch and row.get("prefixes") == 1]
    found = series_of(
        (row for row in rows if "canvas_tokens_per_s" in row),
        POLICIES,
        "policy",
        lambda row: Point(row["prefix"], row["canvas_tokens_per_s"], label=f"{row['canvas_tokens_per_s']:.0f}"),
    )
    drawn = tuple(series for series in found if len(series.points) > 1)
    lean, dual = (
        {point.x: point.y for series in drawn if series.name == name for point in series.points}
        for name in ("lean", "dual")
    )
    ends = min(lean), max(lean)
    gains = ", ".join(f"{times(lean[end] / dual[end])} at {end:,} tokens" for end in ends)
    return Chart(
        "speed-by-prefix",
        Kind.LINES,
        f"lean against dual by the prefix's length: {gains}",
        f"LLaDA-8B's dimensions, {batch} requests behind one prefix, {engine['device']}",
        "tokens of the prefix",
        "canvas tokens a second",
        (Panel(drawn),),
    )


def fidelity(*reports: Report) -> Chart:
    """Chart each policy's row with the most questions, under the profile's own depths."""
    groups = (
        ("questions", 32, "blocks of 32"),
        ("questions", 4, "blocks of 4"),
        ("conversations", 32, "turns of chats"),
    )
    best: dict[tuple[str, str, str, int], Row] = {}
    own = reports[0]["device"]
    for row in (row for report in reports for row in report["rows"] if row["depth"] == "profile"):
        if "load" not in row and row["policy"] not in WITHOUT_TABLE:
            continue  # measured by an older depth table
        key = (row["model"], row["policy"], row.get("load", "questions"), row["block"])
        if key not in best or row["questions"] > best[key]["questions"]:
            best[key] = row

    def panel(model: str) -> Panel:
        def points(load: str, block: int) -> tuple[Point, ...]:
            found = ((name, best.get((model, name, load, block))) for name in POLICIES)
            return tuple(exact(row, name) for name, row in found if row)

        return Panel(tuple(Series(name, points(load, block)) for load, block, name in groups), model)

    naive = best["factbook-plain", "prefix-naive", "questions", 32]["exact_match"]
    lean = best["factbook-plain", "lean", "questions", 32]["exact_match"]
    counts = sorted({row["questions"] for row in best.values()})
    return Chart(
        "fidelity",
        Kind.INTERVALS,
        f"Naive reuse drops the plain model to {naive:.0f} %; lean keeps {lean:.0f} %",
        f"Exact match with 95 % intervals, {counts[0]:,} to {counts[-1]:,} questions, depths by profile and probe, "
        f"{own}; dual and naive reuse: {reports[-1]['device']}",
        "policy",
        "exact match, %",
        (panel("factbook"), panel("factbook-plain")),
        start=92.0,
    )


def exact(row: Row, x: float | str) -> Point:
    return Point(x, row["exact_match"], row["ci95_low"], row["ci95_high"])


def depths(*reports: Report) -> Chart:
    rows = [
        row for report in reports for row in report["rows"] if row["policy"] == "bicache" and row["depth"].isdigit()
    ]
    models = ("factbook", "factbook-plain")
    found = tuple(series_of(rows, models, "model", lambda row: exact(row, int(row["depth"]))))
    plain = {point.x: point.y for point in found[1].points}
    fall = next(depth for depth, matches in plain.items() if matches < plain[0] / 2)
    return Chart(
        "depths",
        Kind.LINES,
        f"The plain model breaks at {fall} reused layers; factbook, trained for reuse, holds",
        f"bicache with a fixed depth, blocks of 32, exact match with 95 % intervals, {reports[0]['device']}",
        "reused layers, of 12",
        "exact match, %",
        (Panel(found),),
    )


def cpu_speed(engine: Report) -> Chart:
    rows = [row for row in engine["rows"] if row["policy"] == "lean"]
    batches = sorted({row["batch"] for row in rows})
    found = [
        Series(
            f"batch {batch}",
            tuple(
                Point(row["ratio"], row["speedup"], label=times(row["speedup"]))
                for row in rows
                if row["batch"] == batch
            ),
        )
        for batch in batches
    ]
    most = max(row["speedup"] for row in rows)
    return Chart(
        "cpu-speed",
        Kind.BARS,
        f"On a CPU, too: lean is up to {times(most)} as fast as none",
        f"factbook, {engine['device']}, canvas tokens a second against none",
        "prefix, % of the whole request",
        "times none",
        (Panel(tuple(found)),),
    )


def commit_latency(cache: Report) -> Chart:
    figures = {(row["what"], row["figure"]): row["value"] for row in cache["rows"]}
    stores = {"memory store": "over gRPC: memory store", "Redis store": "over gRPC: Redis store"}
    columns = {"median": "p50", "99th percentile": "p99", "longest": "max"}

    def value(what: str, column: str) -> float:
        return float(figures[what, f"commit_to_64_watchers_{column}_ms"])

    found = [
        Series(
            store,
            tuple(
                Point(name, value(what, column), label=f"{value(what, column):.1f}") for name, column in columns.items()
            ),
        )
        for store, what in stores.items()
    ]
    slowest = max(value(what, "p99") for what in stores.values())
    return Chart(
        "commit-latency",
        Kind.BARS,
        f"99 of 100 commits reach 64 watchers within {slowest:.0f} ms",
        f"Cache service over gRPC, all processes on {cache['device']}",
        "of all deliveries",
        "ms from commit to watcher",
        (Panel(tuple(found)),),
        Bound(25, "asked of the 99th percentile"),
    )


def transfer(report: Report) -> Chart:
    rows = report["rows"]
    build = [Point(row["prefix_tokens"], row["build_ms"], label=times(row["build_over_fetch"])) for row in rows]
    fetch = [Point(row["prefix_tokens"], row["fetch_ms"]) for row in rows]
    last = rows[-1]
    return Chart(
        "transfer",
        Kind.LINES,
        f"At {last['prefix_tokens']:,} tokens a build takes {times(last['build_over_fetch'])} as long as a fetch",
        f"factbook's entries, two replicas behind Ray Serve, {report['device']}; above each build: times a fetch",
        "tokens of the prefix",
        "milliseconds",
        (Panel((Series("build the entry", tuple(build)), Series("fetch it from another replica", tuple(fetch)))),),
    )


LLADA, CPU = "engine-llada-8b-h100.json", "engine-factbook-cpu.json"
SWEEPS = ("fidelity-factbook-depths-h100.json", "fidelity-factbook-plain-depths-h100.json")
FIDELITY = (
    "fidelity-factbook-h200.json",
    "fidelity-factbook-plain-h200.json",
    "fidelity-factbook-plain-h100.json",  # naive reuse
)
SOURCES = (
    Source((LLADA,), speed_by_batch),
    Source((LLADA,), roofline_share),
    Source((LLADA,), speed_by_prefix),
    Source((*FIDELITY, *SWEEPS), fidelity),
    Source(SWEEPS, depths),
    Source((CPU,), cpu_speed),
    Source(("cache-service-cpu.json",), commit_latency),
    Source(("transfer-cpu.json",), transfer),
)
NOT_CHARTED: Mapping[str, str] = MappingProxyType(
    {
        "engine-dream-7b-h100.json": "one batch alone: a table says it",
        "conversations-cpu.json": "counts of tokens, which a table says",
        "stack-factbook-cpu.json": "two shared cores: a few figures, which stand in the text",
        "factbook-train-h100.json": "the training run's own probe; the fidelity benchmark has more questions",
        "factbook-train-h200.json": "rows of one training; the model card has them",
        "factbook-forms-cpu.json": "rows of one training; the model card has them",
        "factbook-names-cpu.json": "rows of one training; the model card has them",
    }
)
"""Results that no chart shows, with the reason."""
