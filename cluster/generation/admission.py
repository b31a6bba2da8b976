"""Admit requests, and count those that run, so that a server that is stopped lets them end."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

from cluster.errors import DrainingError

T = TypeVar("T")


class Admission:
    """Admits requests until the server drains."""

    def __init__(self) -> None:
        self._num_running = 0
        self._is_draining = False
        self._idle = asyncio.Event()

    def check(self) -> None:
        """Raise DrainingError if new requests are refused."""
        if self._is_draining:
            raise DrainingError("the server is shutting down; send the request to another server, or try again shortly")

    @contextmanager
    def admit(self, observation: AbstractContextManager[T]) -> Iterator[T]:
        """Count a request as running while the context lasts, which is also that of `observation`.

        Raises DrainingError.
        """
        self.check()
        self._num_running += 1
        try:
            with observation as observed:
                yield observed
        finally:
            self._num_running -= 1
            self._notify()

    async def drain(self) -> None:
        """Refuse new requests from now on, and return once none is running."""
        self._is_draining = True
        self._notify()
        await self._idle.wait()

    def _notify(self) -> None:
        if self._is_draining and self._num_running == 0:
            self._idle.set()
