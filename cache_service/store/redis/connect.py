"""From a URL to a redis-py client."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import unquote, urlsplit

from redis.asyncio import Redis, RedisCluster
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff

from cache_service.errors import InvalidRequest

Client = Redis | RedisCluster


class Link:
    """A client, and the clients that it needs to find its server."""

    def __init__(self, client: Client, helpers: Sequence[Redis] = ()) -> None:
        self.client = client
        self._helpers = helpers

    async def close(self) -> None:
        for client in (self.client, *self._helpers):
            await client.aclose()


SCHEMES = ("redis", "rediss", "unix", "redis+cluster", "rediss+cluster", "redis+sentinel", "rediss+sentinel")
SENTINEL_PORT = 26379


def connect(url: str, timeout_s: float) -> Link:
    """A link to `url`; nothing is sent yet.

    redis://[:PASSWORD@]HOST:PORT/DB     one server; rediss:// with TLS, unix://PATH
    redis+cluster://HOST:PORT            a Redis Cluster, by any of its nodes
    redis+sentinel://HOST,HOST/SERVICE   the primary of SERVICE, by its sentinels
    """
    scheme = urlsplit(url).scheme
    if scheme not in SCHEMES:
        raise InvalidRequest(f"the store's URL must begin with memory or one of {', '.join(SCHEMES)}, got {url!r}")
    base, _, topology = scheme.partition("+")
    # No retries within redis-py: what a failed call has done is for the store to find out.
    never = Retry(NoBackoff(), 0)
    if topology == "cluster":
        node = url.replace(scheme, base, 1)
        timeouts = {"socket_timeout": timeout_s, "socket_connect_timeout": timeout_s}
        return Link(RedisCluster.from_url(node, retry=never, **timeouts))
    if topology == "sentinel":
        return _by_sentinels(url, timeout_s, never, tls=base == "rediss")
    return Link(Redis.from_url(url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s, retry=never))


def _by_sentinels(url: str, timeout_s: float, retry: Retry, *, tls: bool) -> Link:
    parts = urlsplit(url)
    credentials, _, hosts = parts.netloc.rpartition("@")
    service, _, db = parts.path.strip("/").partition("/")
    if not service or not (db or "0").isdecimal():
        raise InvalidRequest(f"a sentinel URL ends with the name of the service, and the database if any, got {url!r}")
    pairs = (host.partition(":") for host in hosts.split(","))
    password = unquote(credentials.partition(":")[2]) or None
    sentinel: Any = Sentinel(  # type: ignore[no-untyped-call]
        [(name, int(port or SENTINEL_PORT)) for name, _, port in pairs],
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
    )
    primary: Redis = sentinel.master_for(service, db=int(db or 0), password=password, ssl=tls, retry=retry)
    return Link(primary, sentinel.sentinels)
