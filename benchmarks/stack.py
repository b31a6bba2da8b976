"""Measures `palimpsest serve` under streaming clients against the engine alone on the same machine.

Clients in a process of their own stream the same requests over HTTP and over gRPC, and a process without a server
submits them to an engine: one at a time, then `--streams` of them, each followed by the next when it is answered. The
time that the engine doesn't take is the clients' mean latency less the mean that the worker measured for the same
requests.
"""

from __future__ import annotations

import itertools
import json as json_module
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import torch
import typer

from benchmarks.alone import EngineMeasurement, measure_alone
from benchmarks.clients import Address, Clients, Transport, clients
from benchmarks.dimensions import check_device
from benchmarks.report import Bar, Report, Row, cpu_name
from benchmarks.settings import Setting, bundled, configuration, published
from benchmarks.traffic import Timing, Traffic
from tests.e2e.system import System, running

DIMENSIONS = "llada-8b"
STREAMS, QUICK_STREAMS = 64, 16
SHARE_BOUND, ADDED_MS_BOUND = 0.95, 10.0
START_TIMEOUT_S = 420.0
TRANSPORTS: tuple[Transport, ...] = ("gRPC", "HTTP")


@contextmanager
def served(setting: Setting, directory: Path) -> Iterator[System]:
    """Run the system as a user starts it, with a configuration file, until the end of the block."""
    config = directory / "palimpsest.yaml"
    config.write_text(json_module.dumps(configuration(setting)))
    options = ("--config", str(config), "--log-level", "WARNING")
    with running(str(setting.model), directory / "serve.log", *options, timeout_s=START_TIMEOUT_S) as system:
        yield system


@dataclass(frozen=True)
class ServerTotals:
    """Holds the system's own counters and sums over the requests that have ended."""

    num_requests: float
    ingress_s: float
    engine_s: float
    num_forwards: float
    num_prefix_hits: float

    @classmethod
    def of(cls, system: System) -> ServerTotals:
        return cls(
            system.metric("palimpsest_request_seconds_count"),
            system.metric("palimpsest_request_seconds_sum"),
            system.metric("palimpsest_worker_request_seconds_sum"),
            system.metric("palimpsest_worker_forwards_total"),
            system.metric("palimpsest_worker_prefix_hits_total"),
        )


@dataclass(frozen=True)
class Phase:
    """Holds what clients and system measured while one traffic ran."""

    timing: Timing
    before: ServerTotals
    after: ServerTotals

    def mean_s(self, name: str) -> float:
        num_requests = self.after.num_requests - self.before.num_requests
        return (getattr(self.after, name) - getattr(self.before, name)) / num_requests

    @property
    def costs(self) -> Row:
        """Return the mean request's time before and after the engine, in ms, and the part of it within the server.

        The rest is the client's and its connection's; the server's part is that of ingress, router and Ray.
        """
        ingress_s, engine_s = self.mean_s("ingress_s"), self.mean_s("engine_s")
        return {
            "outside_engine_ms": 1000 * (self.timing.mean_s - engine_s),
            "of_it_ingress_to_engine_ms": 1000 * (ingress_s - engine_s),
            "forwards": int(self.after.num_forwards - self.before.num_forwards),
            "prefix_hits": int(self.after.num_prefix_hits - self.before.num_prefix_hits),
        }


def run_phase(system: System, address: Address, callers: Clients, traffic: Traffic) -> Phase:
    before = ServerTotals.of(system)
    timing = callers.drive(address, traffic)
    return Phase(timing, before, ServerTotals.of(system))


def measure_transport(system: System, transport: Transport, callers: Clients, setting: Setting) -> tuple[Phase, Phase]:
    """Run one request at a time, then all streams."""
    address = Address(transport, system.url if transport == "HTTP" else system.grpc_target)
    callers.drive(address, setting.traffic.alone(1), first_turn=-1)
    single = run_phase(system, address, callers, setting.traffic.alone(setting.num_singles))
    return single, run_phase(system, address, callers, setting.traffic)


def measure(setting: Setting, directory: Path, repeats: int) -> Iterator[Row]:
    """Yield the rows of every repeat.

    The engine alone is measured beside the idle system, or before it starts where the device's memory has no room for
    both.
    """
    baselines = (measure_alone(setting) for _ in range(repeats))
    early = list(baselines) if setting.device == "cuda" else []
    with clients() as callers, served(setting, directory) as system:
        for baseline in itertools.chain(early, baselines):
            yield from rows_alone(baseline, setting)
            for transport in TRANSPORTS:
                single, streams = measure_transport(system, transport, callers, setting)
                one = setting.traffic.alone(setting.num_singles)
                yield row(transport, one, single.timing, baseline.single) | single.costs
                yield row(transport, setting.traffic, streams.timing, baseline.streams) | streams.costs


def rows_alone(measured: EngineMeasurement, setting: Setting) -> Iterator[Row]:
    yield row("engine alone", setting.traffic.alone(setting.num_singles), measured.single, measured.single)
    counts = {"forwards": measured.num_forwards, "prefix_hits": measured.num_prefix_hits}
    yield row("engine alone", setting.traffic, measured.streams, measured.streams) | counts


def row(what: str, traffic: Traffic, timing: Timing, baseline: Timing) -> Row:
    return {
        "what": what,
        "streams": traffic.streams,
        "requests": traffic.num_requests,
        "canvas_tokens_per_s": traffic.canvas_tokens / timing.elapsed_s,
        "share_of_engine": baseline.elapsed_s / timing.elapsed_s,
        "first_text_p50_ms": 1000 * statistics.median(timing.first_s),
        "last_token_p50_ms": 1000 * timing.p50_s,
        "last_token_p99_ms": 1000 * timing.p99_s,
        "added_p50_ms": 1000 * (timing.p50_s - baseline.p50_s),
        "chunks": timing.num_chunks,
    }


def medians(rows: Sequence[Row]) -> list[Row]:
    """Merge the repeats of each row into one, with the median of every figure."""
    groups: dict[tuple[str, int], list[Row]] = {}
    for one in rows:
        groups.setdefault((one["what"], one["streams"]), []).append(one)
    return [
        {
            name: statistics.median(one[name] for one in group) if isinstance(value, float) else value
            for name, value in group[0].items()
        }
        for group in groups.values()
    ]


def bars(rows: Sequence[Row]) -> list[Bar]:
    """Return the bars for a machine on which clients and ingress take nothing from the engine."""
    found: list[Bar] = []
    for one in rows:
        if one["what"] not in TRANSPORTS:
            continue
        what = f"{one['what']}, streams: {one['streams']}"
        if one["streams"] == 1:
            found.append(Bar(f"{what}: added latency p50, ms", one["added_p50_ms"], "<", ADDED_MS_BOUND))
        else:
            found.append(Bar(f"{what}: share of the engine's throughput", one["share_of_engine"], ">=", SHARE_BOUND))
            rest_ms = one["outside_engine_ms"]
            found.append(Bar(f"{what}: mean time outside of the engine, ms", rest_ms, "<", ADDED_MS_BOUND))
    return found


def main(
    quick: Annotated[bool, typer.Option("--quick", help="Measure 16 streams, once.")] = False,
    json: Annotated[Path | None, typer.Option(help="Write the results to this file.")] = None,
    model: Annotated[
        str, typer.Option(help=f"A bundled model, or {DIMENSIONS} for random weights of its dimensions.")
    ] = "factbook",
    device: Annotated[str, typer.Option(help="Device: cpu or cuda.")] = "cuda" if torch.cuda.is_available() else "cpu",
    streams: Annotated[
        int | None, typer.Option(min=2, show_default="64", help="Number of concurrent requests.")
    ] = None,
    repeats: Annotated[
        int | None,
        typer.Option(min=1, show_default="3 on a CPU", help="Number of runs; the report shows their medians."),
    ] = None,
) -> None:
    """Measure throughput and latency over HTTP and gRPC against the engine alone, as a table and JSON."""
    check_device(model, device)
    num_streams = streams or (QUICK_STREAMS if quick else STREAMS)
    num_repeats = repeats or (1 if quick or device == "cuda" else 3)
    rows: list[Row] = []
    with TemporaryDirectory() as directory:
        root = Path(directory)
        if model == DIMENSIONS:
            setting = published(root / model, num_streams, quick=quick)
        else:
            setting = bundled(model, device, num_streams, quick=quick)
        for one in measure(setting, root, num_repeats):
            rows.append(one)
            found = medians(rows)
            on_gpu = device == "cuda"
            device_name = torch.cuda.get_device_name() if on_gpu else cpu_name()
            report = Report("stack", found, bars(found) if on_gpu else [], device_name)
            if json:  # keeps what an interrupted run has measured
                report.write(json)
    report.print()


if __name__ == "__main__":
    typer.run(main)
