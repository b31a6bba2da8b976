"""Watch a cluster from the process that supervises it: by its vital processes, and through its front door.

Serve itself replaces workers, ingress, proxy and controller. A cluster is lost at once when one of Ray's own processes
ends, which nothing replaces. One that doesn't answer is lost after a time that leaves room for Serve's repairs.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from http.client import HTTPException
from urllib.error import HTTPError
from urllib.request import ProxyHandler, build_opener

import psutil

from cache_service.config import address_of
from cluster.config import ClusterConfig
from workers.ray_internals import VITAL_PROCESSES

logger = logging.getLogger(__name__)

DIRECT = build_opener(ProxyHandler({}))
"""Opens URLs without any proxy that the environment names."""


@dataclass(frozen=True)
class WatchLimits:
    """Bounds how long a cluster may be silent or unhealthy, and says how often to look."""

    check_period_s: float = 0.5
    """Seconds between two looks at the processes."""
    probe_period_s: float = 2.0
    """Seconds between two requests to /health."""
    probe_timeout_s: float = 10.0
    """Seconds that one answer of /health may take."""
    silence_s: float = 30.0
    """Seconds for which nothing may answer at the HTTP address."""
    unhealthy_s: float = 60.0
    """Seconds for which /health may fail, or twice those that the start took if that is longer: Serve restarts workers.
    """


class ClusterWatch:
    """Watches one run of a cluster, from before it is ready."""

    def __init__(self, url: str, limits: WatchLimits | None = None) -> None:
        """Probe `url`, that of /health."""
        self._url, self._limits = url, limits or WatchLimits()
        self._started = time.monotonic()
        self._start_s: float | None = None
        self._answered_at = self._healthy_at = self._started
        self._vital: dict[str, psutil.Process] = {}

    @property
    def was_ready(self) -> bool:
        return self._start_s is not None

    async def wait_until_lost(self) -> str:
        """Return the reason once the cluster, after it was ready, can't go on."""
        probed_at = 0.0
        while True:
            now = time.monotonic()
            if now - probed_at >= self._limits.probe_period_s:
                probed_at = now
                probe = asyncio.create_task(asyncio.to_thread(self._probe))
                while not (await asyncio.wait({probe}, timeout=self._limits.check_period_s))[0]:
                    if reason := self._dead_process():
                        return reason
            else:
                await asyncio.sleep(self._limits.check_period_s)
            if reason := self._dead_process() or self._silence():
                return reason

    def _probe(self) -> None:
        """Ask /health once, and note when something answered and when it was healthy."""
        try:
            with DIRECT.open(self._url, timeout=self._limits.probe_timeout_s):
                self._answered_at = self._healthy_at = time.monotonic()
        except HTTPError as error:
            error.close()
            self._answered_at = time.monotonic()
        except (OSError, HTTPException):
            return
        if self._start_s is None and self._healthy_at > self._started:
            children = psutil.Process().children(recursive=True)
            self._vital = {name: child for child in children if (name := name_of(child)) in VITAL_PROCESSES}
            self._start_s = time.monotonic() - self._started

    def _dead_process(self) -> str | None:
        dead = [name for name, process in self._vital.items() if not is_alive(process)]
        return f"Ray's process {dead[0]} has ended" if dead else None

    def _silence(self) -> str | None:
        if self._start_s is None:
            return None
        now = time.monotonic()
        if now - self._answered_at > self._limits.silence_s:
            return f"{self._url} hasn't answered for {self._limits.silence_s:g} s"
        limit_s = max(self._limits.unhealthy_s, 2 * self._start_s)
        if now - self._healthy_at > limit_s:
            return f"{self._url} has failed for {limit_s:.3g} s"
        return None


def is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def name_of(process: psutil.Process) -> str:
    try:
        return str(process.name())
    except psutil.NoSuchProcess:
        return ""


def health_url(config: ClusterConfig) -> str:
    return f"http://{address_of(reachable(config.http.host), config.http.port)}/health"


def reachable(host: str) -> str:
    """Return the address by which this machine reaches a server that listens at `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
