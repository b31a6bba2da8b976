"""Pause, kill and restart processes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

from cache_service.testing.processes import Process


async def torment(victims: Sequence[Process], rng: random.Random, rounds: int) -> None:
    """Pause each process, then kill it and start it again, over and over, with pauses in between."""
    for _ in range(rounds):
        for victim in rng.sample(victims, len(victims)):
            victim.pause()
            await asyncio.sleep(rng.uniform(0.2, 1.0))
            victim.resume()
            await asyncio.sleep(rng.uniform(0.2, 1.0))
            victim.kill()
            await asyncio.sleep(rng.uniform(0.0, 0.5))
            await asyncio.to_thread(victim.start)
            await asyncio.sleep(rng.uniform(0.5, 1.5))
