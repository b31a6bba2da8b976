"""Make the redis-py client for a URL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from redis.asyncio import Redis, RedisCluster
from redis.asyncio.connection import SSLConnection, parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff

from cache_service.errors import InvalidRequest

Client = Redis | RedisCluster


class Link:
    """Holds a client and the clients that it needs to find its server."""

    def __init__(self, client: Client, helpers: Sequence[Redis] = ()) -> None:
        self.client = client
        self._helpers = helpers

    async def close(self) -> None:
        for client in (self.client, *self._helpers):
            await client.aclose()


SCHEMES = ("redis", "rediss", "unix", "redis+cluster", "rediss+cluster", "redis+sentinel", "rediss+sentinel")
SENTINEL_PORT = 26379


def connect(url: str, timeout_s: float) -> Link:
    """Make a link to `url` without sending anything. Raises InvalidRequest, which never repeats the URL.

    The URL may hold a password. Its forms:

    redis://[[USER]:PASSWORD@]HOST:PORT/DB   one server; unix://PATH
    redis+cluster://HOST:PORT                a Redis Cluster, by any of its nodes
    redis+sentinel://HOST,HOST/SERVICE/DB    the primary of SERVICE, by its sentinels, without a password

    A scheme with rediss in place of redis uses TLS to the servers that hold data. Options of redis-py may follow,
    such as ?ssl_ca_certs=PATH.
    """
    scheme = urlsplit(url).scheme
    if scheme not in SCHEMES:
        raise InvalidRequest(f"store must be memory: or a URL that begins with one of {', '.join(SCHEMES)}")
    try:
        return _link(url, scheme, timeout_s)
    except TypeError as error:
        raise InvalidRequest(f"store: this {scheme}:// URL has an option that redis-py lacks: {error}") from None
    except ValueError:
        raise InvalidRequest(
            f"store: this {scheme}:// URL can't be read: check port, database and options, and write all but letters"
            " and digits of the password as %XX"
        ) from None


def _link(url: str, scheme: str, timeout_s: float) -> Link:
    base, _, topology = scheme.partition("+")
    # redis-py must not retry: the store finds out what a failed call has done.
    common: dict[str, Any] = {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        "retry": Retry(NoBackoff(), 0),
    }
    if topology == "sentinel":
        return _by_sentinels(url, base, common)
    if topology == "cluster":
        return Link(RedisCluster.from_url(url.replace(scheme, base, 1), **common))
    client: Redis = Redis.from_url(url, **common)
    pool: Any = client.connection_pool
    pool.make_connection()  # raises for an option that no connection has
    return Link(client)


def _by_sentinels(url: str, base: str, common: dict[str, Any]) -> Link:
    parts = urlsplit(url)
    credentials, at, hosts = parts.netloc.rpartition("@")
    service, _, db = parts.path.strip("/").partition("/")
    if not service or not (db or "0").isdecimal():
        raise InvalidRequest("store: a sentinel URL ends with the name of the service, and the database if any")
    pairs = (host.partition(":") for host in hosts.split(","))
    given: dict[str, Any] = {**parse_url(f"{base}://{credentials}{at}primary/{db or 0}?{parts.query}")}
    given.pop("host")
    tls = given.pop("connection_class", None) is SSLConnection
    sentinel: Any = Sentinel(  # type: ignore[no-untyped-call]
        [(name, int(port or SENTINEL_PORT)) for name, _, port in pairs],
        socket_timeout=common["socket_timeout"],
        socket_connect_timeout=common["socket_connect_timeout"],
    )
    primary: Redis = sentinel.master_for(service, ssl=tls, **{**common, **given})
    return Link(primary, sentinel.sentinels)
