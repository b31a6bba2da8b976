"""Serve one instance by `python -m cache_service`, until SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from pathlib import Path
from typing import Annotated

import typer

from cache_service import config as configs
from cache_service.config import ServerConfig
from cache_service.errors import CacheServiceError
from cache_service.heap import freeze_periodically
from cache_service.rpc.server import CacheServer
from cache_service.store import open_store

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
_log = logging.getLogger("cache_service")


async def _serve(config: ServerConfig) -> None:
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
        _log.info("serving on %s from %r", configs.address_of(config.host, server.port), store)
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
) -> None:
    """Serve the directory of cached prefixes: their holders, and every change in order."""
    if log_level.upper() not in logging.getLevelNamesMapping():
        raise typer.BadParameter(f"{log_level!r} is not one of Python's logging levels", param_hint="--log-level")
    logging.basicConfig(level=log_level.upper(), format="%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    given = {"host": host, "port": port, "metrics_port": metrics_port, "store": store, "history": history}
    overrides = {name: value for name, value in given.items() if value is not None}
    try:
        asyncio.run(_serve(configs.load(config, overrides)))
    except CacheServiceError as error:
        _log.error("%s", error)
        raise typer.Exit(1) from error


if __name__ == "__main__":
    app()
