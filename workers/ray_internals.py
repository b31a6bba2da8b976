"""Defines, in one place, Ray's private names that this project uses. Another version of Ray may move any of them.

They were read from Ray `RAY_VERSION`; `tests/unit/cluster/test_ray_internals.py` fails if the installed Ray is another
version or a name has moved. Nothing here imports Ray, so that the supervisor can read it too.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol, cast

RAY_VERSION: Final = "2.60.0"

SERVE_SETTINGS: Mapping[str, str] = {"RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0", "RAY_SERVE_PROXY_USE_GRPC": "1"}
"""Environment of Serve's processes: one thread less for each request to pass through, and no Ray objects between
Serve's HTTP proxy and the ingress.
"""
LOG_SETTINGS: Mapping[str, str] = {
    "RAY_COLOR_PREFIX": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_DISABLE_WORKER_LOG_PREFIX": "1",
    "RAY_event_stats": "0",
    "RAY_ROTATION_MAX_BYTES": str(8 << 20),
    "RAY_ROTATION_BACKUP_COUNT": "2",
}
"""Environment in which Ray prints our lines as they are, logs no statistics, and rotates each file.
Beware of a period of 0 in such settings: Ray then writes without rest."""
UNSCALED: Mapping[str, str] = {"AUTOSCALER_UPDATE_INTERVAL_S": "60"}
"""Environment of a Ray on one machine: its autoscaler has nothing to do, and need not log so every 5 s."""
PROXY_CALLBACK: Final = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
"""The variable that names a function, MODULE:NAME, whose Starlette middlewares wrap Serve's HTTP servers."""
REQUEST_ID: Final = "x-request-id"
"""The header whose value Serve logs and returns; one that isn't text is an internal error of its proxy."""
STEERING: Final = frozenset(
    {"x-request-timeout-seconds", "x-request-disconnect-disabled", "x-session-id", "serve-multiplexed-model-id"}
)
"""Headers that steer Serve, whichever client sent them; it takes some of them with underscores, too."""
STEERING_PREFIX: Final = "x-serve-router-"
LOCKED_SETTINGS: Mapping[str, str] = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token"}
"""Environment in which Ray reports no usage and accepts only clients with its token."""
TOKEN: Final = "RAY_AUTH_TOKEN"
LONGEST_SOCKET_PATH: Final = "/ray/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store"
"""The longest path of a Unix socket that Ray creates below its directory."""
VITAL_PROCESSES: Final = frozenset({"gcs_server", "raylet"})
"""Names of the processes without which a Ray cluster of one machine can't go on; Ray restarts neither."""
ASGI_APP_METHOD: Final = "__serve_build_asgi_app__"
"""The method of an ingress class that Serve calls for its application; it can only be defined under this name."""
BY_VALUE: Mapping[str, Any] = {"_by_reference": False}
"""Options of a handle whose answers come straight from the replica, and not as Ray's objects."""
NIXL: Final = "nixl"
READ_IN_PLACE: Mapping[str, Any] = {"_tensor_transport": NIXL}
"""Options of `ray.put` for a tensor that stays in its holder's memory until it is read from there."""


SERVE_LOGGER: Final = "ray.serve"
REFUSAL_WARNINGS: Final = ("Request dropped due to backpressure", "Replica at capacity of max_ongoing_requests")
"""Beginnings of Serve's warnings at a full queue. A client learns of that by its 429, an operator by our metrics."""


def steers_serve(header: str) -> bool:
    """Return whether Serve would obey a request's header of this name, which is in lower case."""
    name = header.replace("_", "-")
    return name in STEERING or name.startswith(STEERING_PREFIX)


class ReplicaCall(Protocol):
    """Represents the call to one replica, as part of a call to all of them."""

    async def get_async(self) -> object:
        """Wait for the replica's answer."""
        ...

    def cancel(self) -> None: ...


async def call_all(handle: Any, method: str) -> Sequence[ReplicaCall]:
    """Call `method` on every replica behind a deployment handle, and return the calls.

    Serve's public `results_async` returns no answer at all if one of them is late.
    """
    return cast(Sequence[ReplicaCall], await handle.broadcast(method)._fetch_replica_results_async())


def reported_load(router: Any, replica_id: Any) -> int:
    """Return the number of requests that Serve's request router counts on a replica."""
    return int(router.replica_queue_len_cache.get(replica_id) or 0)


def back_off_while_full(pending_request: Any) -> None:
    """Make Serve wait before it retries replicas that are all full; otherwise it retries at once."""
    pending_request.routing_context.should_backoff = True


def is_no_refusal(record: logging.LogRecord) -> bool:
    """Return whether a line of Serve's logger says anything but that a queue is full."""
    return not record.getMessage().startswith(REFUSAL_WARNINGS)


def adapt_serve_logs(formatter: logging.Formatter) -> None:
    """Make Serve's lines in this replica's output look like ours, with none for requests that find a full queue."""
    logger = logging.getLogger(SERVE_LOGGER)
    logger.addFilter(is_no_refusal)
    for handler in logger.handlers:
        if type(handler) is logging.StreamHandler:
            handler.setFormatter(formatter)


def init_options(directory: Path) -> dict[str, Any]:
    """Return the options of `ray.init` for a Ray that keeps its files in `directory`."""
    return {"_temp_dir": str(directory)}
