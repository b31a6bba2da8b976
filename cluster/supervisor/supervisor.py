"""Run the processes of one machine: the cache service and the cluster start together and end together.

The supervisor imports neither Ray nor torch, so that it answers a signal at once, whatever its children are doing.
Every child has its own session, so that Ctrl-C in the terminal reaches only the supervisor.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
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

import psutil
from tenacity import AsyncRetrying, RetryCallState, wait_exponential

from cluster.config import ClusterConfig
from cluster.config_file import to_mapping
from cluster.errors import ClusterError, StartError
from workers.ray_internals import LOCKED_SETTINGS, LONGEST_SOCKET_PATH, SERVE_SETTINGS, TOKEN

logger = logging.getLogger(__name__)

SOCKET_PATH_LIMIT = 107
GRACE_S, KILL_GRACE_S = 6.0, 1.5
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
"""Options of prctl(2)."""


class ChildEndedError(ClusterError):
    """A child that should run forever has ended."""


def run(config: ClusterConfig, environ: Mapping[str, str], log_level: str) -> int:
    """Serve until SIGINT or SIGTERM and return the exit code. Afterwards no process that was started here is left.

    If a port is taken, or Ray's socket paths would be too long, raises StartError before anything is started.
    """
    check_ports(config)
    with run_directory(environ) as directory, no_orphans():
        machine = Machine(config, directory, child_environment(config, environ), log_level)
        return asyncio.run(machine.serve())


@dataclass(frozen=True)
class Machine:
    """Runs all processes of this machine, as one configuration describes them."""

    config: ClusterConfig
    directory: Path
    environment: Mapping[str, str]
    log_level: str

    async def serve(self) -> int:
        """Serve until a signal asks to stop, and return 0, or until the cluster ends by itself, and return 1."""
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in STOP_SIGNALS:
            loop.add_signal_handler(number, stop.set)
        async with asyncio.TaskGroup() as tasks:
            cache = tasks.create_task(self._keep_cache_service()) if self.config.cache_service.spawn else None
            cluster = tasks.create_task(self._run_cluster())
            stopped = tasks.create_task(stop.wait())
            await asyncio.wait({cluster, stopped}, return_when=asyncio.FIRST_COMPLETED)
            logger.info("stopping")
            for task in filter(None, (cluster, stopped, cache)):
                task.cancel()
        return 0 if stop.is_set() else 1

    async def _run_cluster(self) -> None:
        config_file = self.directory / "config.json"
        config_file.write_text(json.dumps(to_mapping(self.config)))
        async with self._child(
            "cluster.supervisor.driver", config_file, self.directory / "ray", self.log_level
        ) as driver:
            code = await driver.wait()
            logger.error("the cluster ended by itself with exit code %d; its log above has the reason", code)

    async def _keep_cache_service(self) -> None:
        """Run the cache service, and restart it whenever it ends, after increasing delays."""
        where, config_file = self.config.cache_service, self.directory / "cache_service.json"
        config_file.write_text(json.dumps({"contexts": to_mapping(self.config)["cache_service"]["contexts"]}))
        options = ("--config", config_file, "--host", where.host, "--port", where.port, "--log-level", self.log_level)
        async for attempt in AsyncRetrying(wait=wait_exponential(multiplier=0.1, max=5), before_sleep=log_restart):
            with attempt:
                async with self._child("cache_service", *options) as service:
                    raise ChildEndedError(f"the cache service ended with exit code {await service.wait()}")

    @asynccontextmanager
    async def _child(self, module: str, *options: object) -> AsyncIterator[Process]:
        """Run `python -m MODULE ...` in a session of its own. It ends with the context, and with this process.

        It is stopped by SIGINT: at SIGTERM Ray's native code prints a stack trace before Python gets the signal.
        """
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "cluster.supervisor.launch", module, *map(str, options)),
            env=dict(self.environment),
            start_new_session=True,
            preexec_fn=as_child,
        )
        try:
            yield child
        finally:
            if child.returncode is None:
                child.send_signal(signal.SIGINT)
                try:
                    await asyncio.wait_for(child.wait(), GRACE_S)
                except TimeoutError:
                    child.kill()
                    await child.wait()


def log_restart(state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    logger.warning("%s; it is restarted, and requests are served without it meanwhile", error)


def as_child() -> None:
    """Let this child process die with its parent, and block SIGINT until `cluster.supervisor.launch` handles it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    prctl(PR_SET_PDEATHSIG, signal.SIGINT)


def prctl(option: int, value: int) -> None:
    """Set an option of this process on Linux; on other systems children end only when they are asked to."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


@contextmanager
def no_orphans() -> Iterator[None]:
    """End every process that was started inside this context when it is left, including orphans."""
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    try:
        yield
    finally:
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        end_descendants()


def end_descendants() -> None:
    """Ask every descendant of this process to end, and kill those that don't."""
    this = psutil.Process()
    for end in (psutil.Process.terminate, psutil.Process.kill):
        remaining = this.children(recursive=True)
        for child in remaining:
            with contextlib.suppress(psutil.NoSuchProcess):
                end(child)
        psutil.wait_procs(remaining, timeout=KILL_GRACE_S)


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
    proxy between processes of this machine.
    """
    hosts = {"localhost", "127.0.0.1", config.http.host, config.grpc.host, *config.cache_service.hosts}
    bypass = ",".join([*sorted(hosts), *filter(None, [environ.get("no_proxy") or environ.get("NO_PROXY")])])
    inherited = {name: value for name, value in environ.items() if name not in {"RAY_ADDRESS", "RAY_NAMESPACE"}}
    locked = {**LOCKED_SETTINGS, TOKEN: secrets.token_hex(32)}
    return {**SERVE_SETTINGS, **inherited, **locked, "no_proxy": bypass, "NO_PROXY": bypass}


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
