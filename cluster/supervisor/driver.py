"""Run Ray and the application on this machine until SIGINT.

`python -m cluster.supervisor.driver CONFIG_JSON RAY_DIR`

`cluster.supervisor.supervisor` starts it, and ends it and all remaining processes.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import psutil
import ray
import torch
import typer
from ray import serve
from ray.serve.config import HTTPOptions
from ray.serve.schema import LoggingConfig

from cache_service.config import address_of
from cache_service.logs import configure_logs
from cluster.app import INGRESS, WORKERS, build
from cluster.config import APPLICATION, ClusterConfig
from cluster.config_file import parse_config, resolve_model_directory, to_mapping
from cluster.errors import ClusterError, StartError
from cluster.generation.tokenization import Tokenizer
from cluster.supervisor.object_store import Memory, heaviest_copy_bytes, store_size
from cluster.supervisor.processes import end_descendants, no_orphans
from cluster.supervisor.progress import ready_counts, replicas_reported, seconds_since_start
from cluster.supervisor.supervisor import GRACE_S
from cluster.supervisor.watch import health_url, reachable
from workers.engine.memory import memory_budget
from workers.errors import WorkerError
from workers.models.base import ModelConfig
from workers.models.loader import architecture_of, check_dimensions, open_shard, read_json, shard_files
from workers.ray_internals import SERVE_LOGGER, call_all, init_options
from workers.worker import dtype_of

logger = logging.getLogger("cluster.supervisor.driver")  # this module runs as __main__

LIMIT_FILES = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Files with the container's memory limit, by version of cgroups."""
SHARED_MEMORY = Path("/dev/shm")
PARENT_CHECK_S = 1.0
SYSTEM = "Ada is 36 and lives in London. She has a cat. Linus is 28 and lives in Helsinki. He has a penguin."
QUESTION = "Where does Linus live?"


def main(config_file: Path, ray_directory: Path) -> None:
    """Serve the configuration in a JSON file, with Ray's files in a directory whose path is short enough for sockets.

    Ray and Serve log much about themselves; that is shown at level DEBUG.
    """
    config = resolve_model_directory(parse_config(json.loads(config_file.read_text())))
    configure_logs(config.logs)
    model = checked_model(config.worker.model)
    level = "INFO" if config.logs.level == "DEBUG" else "WARNING"
    logging.getLogger(SERVE_LOGGER).setLevel(level)
    num_gpus = 0 if config.worker.device == "cpu" else torch.cuda.device_count()
    num_replicas = config.num_replicas(num_gpus)
    store_bytes = object_store_bytes(config, model, num_gpus, memory_of_machine())
    logger.info("starting Ray, in %s", ray_directory)
    start_ray(config, ray_directory, num_replicas, store_bytes)
    logger.info(
        "Ray is ready after %.0f s; starting %s, worker replicas: %d", seconds_since_start(), config.name, num_replicas
    )
    logs = LoggingConfig(log_level=level, enable_access_log=level == "INFO")
    http = HTTPOptions(host=config.http.host, port=config.http.port)
    serve.start(http_options=http, logging_config=logs)
    wanted = {WORKERS: num_replicas, INGRESS: 1}
    try:
        with replicas_reported(lambda: ready_counts(serve.status(), APPLICATION), wanted):
            serve.run(build(to_mapping(config)), name=APPLICATION, route_prefix="/", logging_config=logs)
    except RuntimeError as error:
        raise StartError(f"{error} {failure_reasons()}") from error
    logger.info("everything is ready after %.0f s", seconds_since_start())
    typer.echo(greeting(config))
    with suppress(KeyboardInterrupt):
        signal.pause()
    asyncio.run(drain(config.limits.shutdown_grace_s))


async def drain(grace_s: float) -> None:
    """Let every ingress replica refuse new requests, and wait up to `grace_s` until the running ones have ended."""
    try:
        async with asyncio.timeout(grace_s):
            calls = await call_all(serve.get_app_handle(APPLICATION), "drain")
            await asyncio.gather(*(call.get_async() for call in calls), return_exceptions=True)
    except TimeoutError:
        logger.warning("requests still ran after limits.shutdown_grace_s (%g s), and are cut off", grace_s)
    except Exception:
        logger.exception("running requests are cut off: the ingress can't be asked to drain")


def checked_model(directory: Path) -> ModelConfig:
    """Check the model's files before the start. Raises UnsupportedModelError or TokenizerError."""
    raw = read_json(directory / "config.json")
    model = architecture_of(raw, directory).parse_config(raw)
    check_dimensions(model, directory)
    for shard in shard_files(directory):
        with open_shard(shard):  # reads the header, which shows whether the file was cut off
            pass
    Tokenizer(directory)
    return model


def object_store_bytes(config: ClusterConfig, model: ModelConfig, num_gpus: int, memory: Memory) -> int:
    """Return the size of Ray's object store; warns if copies will be slow. Raises StartError."""
    worker, on_gpus = config.worker, config.is_on_gpus(num_gpus)
    itemsize = dtype_of(worker.dtype, torch.device("cuda" if on_gpus else "cpu")).itemsize
    entry_bytes = worker.kv.entry_bytes
    if not on_gpus or worker.kv.pool_bytes is not None:
        entry_bytes = memory_budget(worker.kv, torch.device("cpu")).entry_bytes
    heaviest = heaviest_copy_bytes(model, worker.bicache.entry_depths, itemsize, entry_bytes)
    size = store_size(config, config.num_replicas(num_gpus), heaviest, memory)
    if size.warning:
        logger.warning(size.warning)
    return size.num_bytes


def memory_of_machine(limit_files: Iterable[Path] = LIMIT_FILES) -> Memory:
    """Return the memory of this machine, or of the container that it runs in."""
    limits = [psutil.virtual_memory().total]
    for file in limit_files:
        with suppress(OSError, ValueError):  # the other version's, or "max"
            limits.append(int(file.read_text()))
    total = min(limits)
    return Memory(total, psutil.disk_usage(str(SHARED_MEMORY)).free if SHARED_MEMORY.exists() else total)


def failure_reasons() -> str:
    """Return the last line of each failed deployment's message."""
    deployments = serve.status().applications[APPLICATION].deployments.items()
    messages = {name: status.message.strip().splitlines() for name, status in deployments}
    return "; ".join(f"{name}: {lines[-1]}" for name, lines in messages.items() if lines)


def start_ray(config: ClusterConfig, directory: Path, num_replicas: int, store_bytes: int) -> None:
    """Start a separate Ray cluster on this machine, which reserves no more than is configured."""
    needed = math.ceil(num_replicas * config.resources.worker_cpus + config.resources.ingress_cpus)
    try:
        ray.init(
            address="local",
            num_cpus=max(os.cpu_count() or 1, needed),
            object_store_memory=store_bytes,
            include_dashboard=False,
            logging_level=logging.WARNING,
            **init_options(directory),
        )
    except Exception as error:
        raise StartError(f"Ray doesn't start on this machine: {error} Is the machine busy? Then try again.") from error


def greeting(config: ClusterConfig) -> str:
    """Return the start-up message, with a command that sends a first request."""
    url = f"http://{address_of(reachable(config.http.host), config.http.port)}"
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": QUESTION}]
    body = json.dumps({"model": config.name, "messages": messages})
    named = config.api_keys.env
    first = f"${{{named}%%,*}}" if named else "$KEY"
    key = f'-H "Authorization: Bearer {first}" ' if config.api_keys.required else ""
    return (
        f"\nPalimpsest serves {config.name}.\n"
        f"  HTTP  {url}/v1   (health: {health_url(config)}, metrics: {url}/metrics)\n"
        f"  gRPC  {address_of(reachable(config.grpc.host), config.grpc.port)}   (palimpsest.inference.v1.Inference)\n"
        f"Ask it:\n"
        f"  curl {url}/v1/chat/completions {key}-H 'Content-Type: application/json' -d {shlex.quote(body)}\n"
        f"Ctrl-C ends it all.\n"
    )


def end_after_parent(parent: int) -> None:
    """End this process and Ray some seconds after `parent` has ended: Ray may miss the signal while it starts."""
    while os.getppid() == parent:
        time.sleep(PARENT_CHECK_S)
    time.sleep(GRACE_S)
    end_descendants()
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=end_after_parent, args=(os.getppid(),), daemon=True).start()
    with no_orphans():
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            main(Path(sys.argv[1]), Path(sys.argv[2]))
            ray.shutdown()
        except (ClusterError, WorkerError) as failure:
            sys.exit(f"palimpsest: {failure}")
        except KeyboardInterrupt:
            ray.shutdown()
