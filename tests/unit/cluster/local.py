"""A real worker in this process, which replaces the replicas behind a router; it fails where a test says so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field

from fastapi.testclient import TestClient

from workers.api import GenerateChunk, GenerateRequest, ModelInfo
from workers.worker import Worker

Connect = Callable[..., TestClient]
"""A function of create_app's `api_keys`, `max_body_bytes` and `cors_origins`; returns a client of that application."""

RIGHT_KEYS = [
    (("authorization", "Bearer right"),),
    (("authorization", "bearer right"),),
    (("authorization", "BEARER  right "),),
    (("x-api-key", "right"),),
    (("api-key", "right"),),
    (("authorization", "Bearer none"), ("x-api-key", "right")),
]
"""Headers, or metadata, with the key `right`, as both transports take it."""
WRONG_KEYS = [
    (("authorization", "Bearer wrong"),),
    (("authorization", "Basic right"),),
    (("authorization", "right"),),
    (("authorization", "Bearer"),),
    (("authorization", "Bearer right right"),),
    (("x-api-key", "Bearer right"),),
    (("api-key", ""),),
]
"""Headers, or metadata, without that key."""


@dataclass
class Fault:
    """Replaces an answer's chunk number `after`; number 0 is the acceptance."""

    error: Exception | None = None
    """None: the worker hangs."""
    after: int = 0


@dataclass
class LocalWorkers:
    """Is `cluster.generation.workers.Workers` over one worker."""

    worker: Worker
    faults: list[Fault] = field(default_factory=list)
    """Faults of the next requests, one each."""
    requests: list[GenerateRequest] = field(default_factory=list)
    away: bool = False

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateChunk, None]:
        self.requests.append(request)
        fault = self.faults.pop(0) if self.faults else None
        async with aclosing(self.worker.generate(request)) as chunks:
            number = 0
            async for chunk in chunks:
                if fault is not None and number == fault.after:
                    await self._happen(fault)
                number += 1
                yield chunk

    async def _happen(self, fault: Fault) -> None:
        if fault.error is None:
            await asyncio.Event().wait()
        else:
            raise fault.error

    async def model_info(self) -> ModelInfo | None:
        return None if self.away else await self.worker.model_info()
