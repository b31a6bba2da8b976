"""A running system, started as a person starts it: `palimpsest serve` in a process group of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2 as httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families

from tests.support.waiting import PATIENCE_S, eventually

START_TIMEOUT_S = 240.0


@dataclass(frozen=True)
class System:
    """One running `palimpsest serve`."""

    process: subprocess.Popen[bytes]
    log: Path
    model: str
    http_port: int
    grpc_port: int
    cache_port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def grpc_target(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"

    def post(self, path: str, body: object, **headers: str) -> httpx.Response:
        return httpx.post(self.url + path, json=body, headers=headers, timeout=PATIENCE_S)

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, timeout=PATIENCE_S)

    def metric(self, name: str, **labels: str) -> float:
        """Return the sum over the samples of this name with these labels."""
        families = text_string_to_metric_families(self.get("/metrics").text)
        samples = (sample for family in families for sample in family.samples if sample.name == name)
        return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())

    def processes(self, words: str) -> list[psutil.Process]:
        """Return the processes of this system whose command line contains `words`."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in children if words in command_of(child)]

    def logged(self) -> str:
        """Return what the system's processes have logged, Ray's read at the source: the system's log lags behind."""
        files = {file.path for process in self.processes("ray::") for file in process.open_files()}
        logs = [self.log, *(path for path in map(Path, sorted(files)) if path.name.startswith("worker-"))]
        assert len(logs) > 1, f"no process of Ray has a log among {files}"
        return "\n".join(log.read_text() for log in logs)

    def worker(self, replica: str) -> psutil.Process:
        """Return the process of one worker replica, found by the name of its log file."""
        for child in self.processes("ServeReplica:palimpsest:DiffusionWorker"):
            if any(replica in file.path for file in child.open_files()):
                return child
        raise AssertionError(f"no process of replica {replica}")


def command_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def free_ports(number: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [listener.getsockname()[1] for listener in sockets]
    for listener in sockets:
        listener.close()
    return ports


def start(model: str, log: Path, *options: str) -> System:
    """Start a system, and return at once."""
    http, grpc, cache = free_ports(3)
    ports = ["--http-port", str(http), "--grpc-port", str(grpc), "--cache-port", str(cache)]
    command = [sys.executable, "-m", "cluster.cli", "serve", "--model", model, *ports, *options]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
    return System(process, log, Path(model).name, http, grpc, cache)


def await_ready(system: System, timeout_s: float = START_TIMEOUT_S) -> None:
    def ready() -> bool:
        if system.process.poll() is not None:
            raise AssertionError(f"the system ended while it started:\n{system.log.read_text()}")
        return "Ask it:" in system.log.read_text()

    eventually(ready, timeout_s, lambda: f"not ready:\n{system.log.read_text()}")


def stop(system: System, number: int = signal.SIGINT) -> int:
    """Signal the whole process group, as a terminal does at Ctrl-C, and wait for the exit code."""
    os.killpg(system.process.pid, number)
    return system.process.wait(PATIENCE_S)


@contextmanager
def running(model: str, log: Path, *options: str, timeout_s: float = START_TIMEOUT_S) -> Iterator[System]:
    system = start(model, log, *options)
    try:
        await_ready(system, timeout_s)
        yield system
    finally:
        if system.process.poll() is None:
            stop(system)
