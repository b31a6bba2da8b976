"""Run the processes of one machine: the cache service and the cluster start together and end together.

The supervisor imports neither Ray nor torch, so that it answers a signal at once, whatever its children are doing.
Every child has its own session, so that Ctrl-C in the terminal reaches only the supervisor.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tenacity import AsyncRetrying, RetryCallState, wait_exponential

from cluster.config import ClusterConfig
from cluster.config_file import to_mapping
from cluster.errors import ClusterError, StartError
from cluster.supervisor.processes import STOP_SIGNALS, as_child, kill_descendants, no_orphans
from cluster.supervisor.watch import ClusterWatch, health_url
from workers.ray_internals import (
    LOCKED_SETTINGS,
    LOG_SETTINGS,
    LONGEST_SOCKET_PATH,
    PROXY_CALLBACK,
    SERVE_SETTINGS,
    TOKEN,
    UNSCALED,
)

logger = logging.getLogger(__name__)

SERVE_ENVIRONMENT: Mapping[str, str] = {**SERVE_SETTINGS, PROXY_CALLBACK: "cluster.ingress.http.proxy:middlewares"}
"""Environment of Serve's processes, unless the user's own sets the same names; the image sets it for Kubernetes."""
SOCKET_PATH_LIMIT = 107
GRACE_S = 6.0
RESTART_DELAY_S, MAX_RESTART_DELAY_S = 0.5, 30.0
MAX_FAILED_STARTS = 3
"""Restarts in a row that may fail before the supervisor gives up."""


class ChildEndedError(ClusterError):
    """A child that should run forever has ended."""


@dataclass(frozen=True)
class Loss:
    """Says why a cluster had to end, and whether it had been ready."""

    reason: str
    was_ready: bool


def run(config: ClusterConfig, environ: Mapping[str, str]) -> int:
    """Serve until SIGINT or SIGTERM and return the exit code. Afterwards no process that was started here is left.

    If a port is taken, or Ray's socket paths would be too long, raises StartError before anything is started.
    """
    check_ports(config)
    with run_directory(environ) as directory, no_orphans():
        machine = Machine(config, directory, child_environment(config, environ))
        return asyncio.run(machine.serve())


class Machine:
    """Runs all processes of this machine, as one configuration describes them."""

    def __init__(self, config: ClusterConfig, directory: Path, environment: Mapping[str, str]) -> None:
        self._config, self._directory = config, directory
        self._environment = environment
        self._stop, self._stop_now = asyncio.Event(), asyncio.Event()
        self._cache_service: Process | None = None

    async def serve(self) -> int:
        """Serve until a signal asks to stop, and return 0, or until restarts of the cluster don't help, and return 1.

        The first signal lets running requests end within `limits.shutdown_grace_s`; a second one ends all at once.
        """
        own = "the cache service and " if self._config.cache_service.spawn else ""
        logger.info("starting %sthe cluster, with the model %s; a start takes some 20 s", own, self._config.name)
        loop = asyncio.get_running_loop()
        for number in STOP_SIGNALS:
            loop.add_signal_handler(number, self._request_stop)
        async with asyncio.TaskGroup() as tasks:
            cache = tasks.create_task(self._keep_cache_service()) if self._config.cache_service.spawn else None
            cluster = tasks.create_task(self._keep_cluster())
            stopped = tasks.create_task(self._stop.wait())
            await asyncio.wait({cluster, stopped}, return_when=asyncio.FIRST_COMPLETED)
            logger.info("stopping")
            for task in (cluster, stopped):
                task.cancel()
            await asyncio.wait({cluster})
            if cache:
                cache.cancel()
        return 0 if self._stop.is_set() else 1

    def _request_stop(self) -> None:
        if self._stop.is_set():
            self._stop_now.set()
        self._stop.set()

    async def _keep_cluster(self) -> None:
        """Run the cluster, and restart it whenever it is lost. Return if it never gets ready, and say why.

        The cache service runs on meanwhile, with its shared contexts.
        """
        failed_starts, has_been_ready = 0, False
        while True:
            loss = await self._run_cluster()
            has_been_ready |= loss.was_ready
            failed_starts = 0 if loss.was_ready else failed_starts + 1
            if not has_been_ready:
                logger.error("the cluster didn't start: %s; its log above has more", loss.reason)
                return
            if failed_starts == MAX_FAILED_STARTS:
                logger.error("the cluster was lost, and %d restarts failed: %s", failed_starts, loss.reason)
                return
            delay_s = min(MAX_RESTART_DELAY_S, RESTART_DELAY_S * 2**failed_starts)
            logger.error("the cluster was lost: %s; it is restarted in %g s", loss.reason, delay_s)
            await asyncio.sleep(delay_s)

    async def _run_cluster(self) -> Loss:
        """Run the cluster until it is lost; no process of it is left then."""
        config_file, ray_directory = self._directory / "config.json", self._directory / "ray"
        config_file.write_text(json.dumps(to_mapping(self._config)))
        watch = ClusterWatch(health_url(self._config))
        grace_s = self._config.limits.shutdown_grace_s + GRACE_S
        async with self._child("cluster.supervisor.driver", config_file, ray_directory, grace_s=grace_s) as driver:
            ended, lost = asyncio.create_task(driver.wait()), asyncio.create_task(watch.wait_until_lost())
            try:
                await asyncio.wait({ended, lost}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                lost.cancel()
                ended.cancel()
            code = driver.returncode
            reason = lost.result() if code is None else f"its driver ended with exit code {code}"
            kept = self._cache_service.pid if self._cache_service else None
            await asyncio.to_thread(kill_descendants, kept)
        shutil.rmtree(ray_directory, ignore_errors=True)
        return Loss(reason, watch.was_ready)

    async def _keep_cache_service(self) -> None:
        """Run the cache service, and restart it whenever it ends, after increasing delays."""
        where, config_file = self._config.cache_service, self._directory / "cache_service.json"
        config_file.write_text(json.dumps({"contexts": to_mapping(self._config)["cache_service"]["contexts"]}))
        logs = ("--log-level", self._config.logs.level, "--log-format", self._config.logs.format)
        options = ("--config", config_file, "--host", where.host, "--port", where.port, *logs)
        async for attempt in AsyncRetrying(wait=wait_exponential(multiplier=0.1, max=5), before_sleep=log_restart):
            with attempt:
                async with self._child("cache_service", *options) as self._cache_service:
                    code = await self._cache_service.wait()
                    raise ChildEndedError(f"the cache service ended with exit code {code}")

    @asynccontextmanager
    async def _child(self, module: str, *options: object, grace_s: float = GRACE_S) -> AsyncIterator[Process]:
        """Run `python -m MODULE ...` in a session of its own. It ends with the context, and with this process.

        It is stopped by SIGINT: at SIGTERM Ray's native code prints a stack trace before Python gets the signal. It is
        killed after `grace_s`, or at once if a second signal came.
        """
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "cluster.supervisor.launch", module, *map(str, options)),
            env=dict(self._environment),
            start_new_session=True,
            preexec_fn=as_child,
        )
        try:
            yield child
        finally:
            if child.returncode is None:
                child.send_signal(signal.SIGINT)
                await self._await_end(child, grace_s)

    async def _await_end(self, child: Process, grace_s: float) -> None:
        ended, hurried = asyncio.create_task(child.wait()), asyncio.create_task(self._stop_now.wait())
        await asyncio.wait({ended, hurried}, timeout=grace_s, return_when=asyncio.FIRST_COMPLETED)
        hurried.cancel()
        if child.returncode is None:
            child.kill()
        await ended


def log_restart(state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    logger.warning("%s; it is restarted, and requests are served without it meanwhile", error)


@contextmanager
def run_directory(environ: Mapping[str, str]) -> Iterator[Path]:
    """Yield a new directory for this run, short enough for Ray's sockets, and remove it at the end.

    It is in $RAY_TMPDIR if that is set, else in the usual place for temporary files. Raises StartError.
    """
    wanted = environ.get("RAY_TMPDIR")
    for parent in [wanted] if wanted else [tempfile.gettempdir(), "/tmp"]:
        if len(os.path.join(parent, "palimpsest-12345678") + LONGEST_SOCKET_PATH) <= SOCKET_PATH_LIMIT:
            break
    else:
        raise StartError(f"the path {parent} is too long for Ray's sockets; set RAY_TMPDIR to a short one, as /tmp")
    try:
        directory = Path(tempfile.mkdtemp(prefix="palimpsest-", dir=parent))
    except OSError as error:
        raise StartError(f"no directory for this run in {parent}: {error}; set RAY_TMPDIR") from error
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def child_environment(config: ClusterConfig, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the children's environment: a Ray of their own, locked with a new token and without usage reports, and no
    proxy between processes of this machine. Ray's own logging is reduced unless ours is at DEBUG.
    """
    hosts = {"localhost", "127.0.0.1", config.http.host, config.grpc.host, *config.cache_service.hosts}
    bypass = ",".join([*sorted(hosts), *filter(None, [environ.get("no_proxy") or environ.get("NO_PROXY")])])
    inherited = {name: value for name, value in environ.items() if name not in {"RAY_ADDRESS", "RAY_NAMESPACE"}}
    locked = {**LOCKED_SETTINGS, TOKEN: secrets.token_hex(32)}
    quiet = {} if config.logs.level == "DEBUG" else {**LOG_SETTINGS, **UNSCALED}
    plain = {} if sys.stderr.isatty() else {"NO_COLOR": "1"}
    return {**SERVE_ENVIRONMENT, **quiet, **plain, **inherited, **locked, "no_proxy": bypass, "NO_PROXY": bypass}


def check_ports(config: ClusterConfig) -> None:
    """Raise StartError, naming the option, for a port that can't be bound."""
    wanted = [(config.http.host, config.http.port, "--http-port"), (config.grpc.host, config.grpc.port, "--grpc-port")]
    if config.cache_service.spawn:
        wanted.append((config.cache_service.host, config.cache_service.port, "--cache-port"))
    with contextlib.ExitStack() as stack:
        for host, port, option in wanted:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            try:
                stack.enter_context(socket.create_server((host, port), family=family))
            except (OSError, OverflowError) as error:
                raise StartError(
                    f"can't listen at {host}:{port} ({error}); choose another port with {option}"
                ) from error
