"""Recognize a server that evicts what it holds."""

from __future__ import annotations

import logging

from cache_service.errors import InvalidRequest
from cache_service.store.redis import scripts
from cache_service.store.redis.connect import Client

_log = logging.getLogger(__name__)


async def require_lasting(client: Client, meta: str, *, allow_eviction: bool) -> bool:
    """Return whether the server may evict keys without a TTL. Raises InvalidRequest if so, unless that is allowed.

    `meta` is a key on the server in question, which is one of several in a cluster.
    """
    policy = (await client.eval(scripts.POLICY, 1, meta)).decode()
    if not policy.startswith(scripts.EVICTING):
        return False
    if not allow_eviction:
        raise InvalidRequest(
            f"the store's server evicts keys once its memory is full (maxmemory-policy {policy}), and shared contexts "
            "with them: set its maxmemory-policy to noeviction, or allow_evicting_store of this instance"
        )
    _log.warning(
        "the store's server evicts keys once its memory is full (maxmemory-policy %s): shared contexts may vanish at "
        "any time",
        policy,
    )
    return True
