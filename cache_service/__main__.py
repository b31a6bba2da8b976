"""Serve one instance by `python -m cache_service`, until SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer

from cache_service.errors import CacheServiceError
from cache_service.extras import require_extra
from cache_service.logs import LogFormat, LogLevel, LogsConfig, configure_logs

if TYPE_CHECKING:
    from cache_service.config import ServerConfig

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
_log = logging.getLogger("cache_service")


async def _serve(config: ServerConfig) -> None:
    from cache_service.config import address_of
    from cache_service.heap import freeze_periodically
    from cache_service.rpc.server import CacheServer
    from cache_service.store import open_store

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    store = await open_store(
        config.store,
        history=config.history,
        timeout_s=config.store_timeout_s,
        clock=time.monotonic,
        allow_eviction=config.allow_evicting_store,
    )
    async with CacheServer(config, store) as server:
        kind = config.store.partition(":")[0]  # the rest of the URL may hold a password
        _log.info("serving on %s with a store of kind %s", address_of(config.host, server.port), kind)
        server.tasks.start("the freezing of the heap", freeze_periodically)
        await stop.wait()
        _log.info("stopping")
    _log.info("stopped")


@app.command()
def main(
    config: Annotated[Path | None, typer.Option(help="YAML file; the options below take precedence.")] = None,
    host: Annotated[str | None, typer.Option(envvar="PALIMPSEST_CACHE_HOST", help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(envvar="PALIMPSEST_CACHE_PORT", help="0 takes a free one.")] = None,
    metrics_port: Annotated[int | None, typer.Option(help="Serve Prometheus metrics here.")] = None,
    store: Annotated[
        str | None, typer.Option(envvar="PALIMPSEST_CACHE_STORE", help="memory: or the URL of a Redis-protocol server.")
    ] = None,
    history: Annotated[int | None, typer.Option(help="Events kept for watchers that lag.")] = None,
    log_level: Annotated[str, typer.Option(envvar="PALIMPSEST_LOG_LEVEL", help="As in Python's logging.")] = "INFO",
    log_format: Annotated[str, typer.Option(envvar="PALIMPSEST_LOG_FORMAT", help="text or json.")] = "text",
) -> None:
    """Serve the directory of cached prefixes: their holders, and every change in order."""
    require_extra("cache", "cattrs", "grpc_health", "grpc_reflection", "prometheus_client", "tenacity", "yaml")
    from cache_service.config import load

    if log_level.upper() not in logging.getLevelNamesMapping():
        raise typer.BadParameter(f"{log_level!r} is not one of Python's logging levels", param_hint="--log-level")
    if log_format not in get_args(LogFormat):
        raise typer.BadParameter(f"{log_format!r} is neither text nor json", param_hint="--log-format")
    configure_logs(LogsConfig(cast(LogLevel, log_level.upper()), cast(LogFormat, log_format)))
    given = {"host": host, "port": port, "metrics_port": metrics_port, "store": store, "history": history}
    overrides = {name: value for name, value in given.items() if value is not None}
    try:
        asyncio.run(_serve(load(config, overrides)))
    except CacheServiceError as error:
        _log.error("%s", error)
        raise typer.Exit(1) from error


if __name__ == "__main__":
    app()
