"""Real processes under real signals: instances of the service over one Redis-protocol server."""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Self

from cache_service.testing import free_port
from tests.contract.redis_server import RedisServer

START_S = 60.0
PAUSE_S = 1.0


class Instance:
    """One `python -m cache_service`, which can be paused, killed, and started again on the same port."""

    def __init__(self, store_url: str, directory: Path) -> None:
        self.port = free_port()
        self._command = [sys.executable, "-m", "cache_service", "--port", str(self.port), "--store", store_url]
        self._log = directory / f"{self.port}.log"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.kill()

    async def start(self) -> None:
        """Return once it serves; where the store is away, it ends, and is started again."""
        async with asyncio.timeout(START_S):
            while True:
                with self._log.open("w") as log:
                    self._process = await asyncio.to_thread(subprocess.Popen, self._command, stderr=log)
                while self._process.poll() is None:
                    if "serving on" in self._log.read_text():
                        return
                    await asyncio.sleep(0.05)

    def pause(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


async def torment(instances: list[Instance], server: RedisServer, rng: random.Random, rounds: int) -> None:
    """Pause and kill each instance and the store, over and over, with breath between."""
    for _ in range(rounds):
        victims: list[Instance | RedisServer] = [*instances, server]
        rng.shuffle(victims)
        for victim in victims:
            victim.pause()
            await asyncio.sleep(rng.uniform(0.2, PAUSE_S))
            victim.resume()
            await asyncio.sleep(rng.uniform(0.2, 1.0))
            victim.kill()
            await asyncio.sleep(rng.uniform(0.0, 0.5))
            if isinstance(victim, Instance):
                await victim.start()
            else:
                await asyncio.to_thread(victim.start)
            await asyncio.sleep(rng.uniform(0.5, 1.5))
