"""Defines, in one place, Ray's private names that this project uses. Another version of Ray may move any of them.

They were read from Ray `RAY_VERSION`; `tests/unit/cluster/test_ray_internals.py` fails if the installed Ray is another
version or a name has moved. Nothing here imports Ray, so that the supervisor can read it too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol, cast

RAY_VERSION: Final = "2.60.0"

SERVE_SETTINGS: Mapping[str, str] = {"RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0", "RAY_SERVE_PROXY_USE_GRPC": "1"}
"""Environment of Serve's processes: one thread less for each request to pass through, and no Ray objects between
Serve's HTTP proxy and the ingress.
"""
LOCKED_SETTINGS: Mapping[str, str] = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token"}
"""Environment in which Ray reports no usage and accepts only clients with its token."""
TOKEN: Final = "RAY_AUTH_TOKEN"
LONGEST_SOCKET_PATH: Final = "/ray/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store"
"""The longest path of a Unix socket that Ray creates below its directory."""
ASGI_APP_METHOD: Final = "__serve_build_asgi_app__"
"""The method of an ingress class that Serve calls for its application; it can only be defined under this name."""
BY_VALUE: Mapping[str, Any] = {"_by_reference": False}
"""Options of a handle whose answers come straight from the replica, and not as Ray's objects."""
NIXL: Final = "nixl"
READ_IN_PLACE: Mapping[str, Any] = {"_tensor_transport": NIXL}
"""Options of `ray.put` for a tensor that stays in its holder's memory until it is read from there."""


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


def init_options(directory: Path) -> dict[str, Any]:
    """Return the options of `ray.init` for a Ray that keeps its files in `directory`."""
    return {"_temp_dir": str(directory)}
