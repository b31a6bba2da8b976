"""`palimpsest serve` runs as a process: it says why it can't start, and leaves nothing behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.e2e.system import System, await_ready, command_of, start, stop
from tests.support.waiting import eventually


def descendants(system: System) -> list[psutil.Process]:
    return psutil.Process(system.process.pid).children(recursive=True)


def left(processes: list[psutil.Process]) -> list[str]:
    return [command_of(process) for process in processes if process.is_running()]


def run_directories(system: System) -> set[Path]:
    """Return the directories of this run, which its children's command lines name."""
    words = " ".join(command_of(child) for child in descendants(system)).split()
    return {Path(word).parent for word in words if word.endswith("/config.json") and "palimpsest-" in word}


def test_control_c_ends_everything(tmp_path: Path, random_model: Path) -> None:
    system = start(str(random_model), tmp_path / "serve.log", "--replicas", "1")
    await_ready(system)
    [directory] = run_directories(system)
    started = descendants(system)
    assert len(started) > 5

    code = stop(system, signal.SIGINT)

    assert code == 0
    assert left(started) == []
    assert not directory.exists()
    assert "Traceback" not in system.log.read_text()


@pytest.mark.system
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_it_starts_ends_everything_too(tmp_path: Path, random_model: Path, number: int) -> None:
    system = start(str(random_model), tmp_path / "serve.log")
    eventually(lambda: len(descendants(system)) > 4)
    started = descendants(system)

    code = stop(system, number)

    assert code == 0
    assert left(started) == []


@pytest.mark.system
@pytest.mark.parametrize("child", ["cluster.supervisor.driver", "cache_service"])
def test_a_signal_while_it_imports_ends_it_without_a_stack(tmp_path: Path, random_model: Path, child: str) -> None:
    system = start(str(random_model), tmp_path / "serve.log")
    eventually(lambda: system.processes(child) != [])
    started = descendants(system)

    code = stop(system, signal.SIGINT)

    assert code == 0
    assert left(started) == []
    assert "Traceback" not in system.log.read_text()


@pytest.mark.system
def test_a_killed_supervisor_leaves_nothing(tmp_path: Path, random_model: Path) -> None:
    system = start(str(random_model), tmp_path / "serve.log")
    eventually(lambda: len(descendants(system)) > 4)
    started, directories = descendants(system), run_directories(system)

    system.process.kill()
    system.process.wait()

    eventually(lambda: left(started) == [], reason=lambda: "\n".join(left(started)))
    for directory in directories:
        shutil.rmtree(directory)


def test_a_taken_port_is_reported_before_anything_starts(system: System, random_model: Path) -> None:
    options = ["--model", str(random_model), "--grpc-port", "0", "--cache-port", "0"]

    result = serve("--http-port", str(system.http_port), *options)

    assert result.returncode == 2
    assert "--http-port" in result.stderr
    assert "cache_service" not in result.stderr


def test_a_missing_model_is_reported(tmp_path: Path) -> None:
    result = serve("--model", str(tmp_path))

    assert result.returncode == 2
    assert str(tmp_path) in result.stderr


def test_truncated_weights_are_reported_before_ray_starts(tmp_path: Path, random_model: Path) -> None:
    model = tmp_path / "torn"
    shutil.copytree(random_model, model)
    weights = model / "model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)

    result = serve("--model", str(model), "--http-port", "0", "--grpc-port", "0", "--cache-port", "0")

    assert result.returncode == 1
    assert str(weights) in result.stderr
    assert "Traceback" not in result.stderr


def serve(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cluster.cli", "serve", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=dict(os.environ))
