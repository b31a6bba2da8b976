"""Every kind of URL leads to a store; passwords are never repeated."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import os
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
import redis
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from cache_service.config import ServerConfig
from cache_service.errors import CacheServiceUnavailable, InvalidRequest
from cache_service.store.redis.connect import connect
from cache_service.store.redis.store import RedisStore
from cache_service.testing import free_port
from cache_service.testing.processes import RedisProcess
from tests.contract.servers import opened, round_trip
from tests.contract.test_store import announce, joined
from tests.support.requirements import needs_redis
from tests.support.waiting import until
from tests.unit.cache_service.builders import ANNA, placed

pytestmark = needs_redis
SECRET = "s3cr3t-w0rd"
LEAST_RIGHTS = (
    "+@connection +eval +evalsha +script|load +info +exists +set +del +pexpire"
    " +hset +hmget +hincrby +hdel +hvals +xadd +xrange +xread"
)


async def test_a_password_is_taken_from_the_url(start: Callable[..., RedisProcess]) -> None:
    server = start("--requirepass", "se:cret")
    await round_trip(f"redis://:se%3Acret@127.0.0.1:{server.port}/0")
    with pytest.raises(CacheServiceUnavailable, match=r"(?i)auth"):
        await RedisStore.open(server.url, history=1)


async def test_a_user_needs_no_more_rights_than_the_documented_ones(
    start: Callable[..., RedisProcess], tmp_path: Path
) -> None:
    users = tmp_path / "users.acl"
    users.write_text(f"user default off\nuser cache on >{SECRET} ~{{palimpsest}}:* {LEAST_RIGHTS}\n")
    server = start("--aclfile", str(users))
    await round_trip(f"redis://cache:{SECRET}@127.0.0.1:{server.port}/0")


def test_the_least_rights_are_documented() -> None:
    assert LEAST_RIGHTS in (Path(__file__).parents[2] / "docs/operations.md").read_text()


async def test_a_store_is_reached_by_a_unix_socket(start: Callable[..., RedisProcess], tmp_path: Path) -> None:
    start("--unixsocket", str(tmp_path / "redis.sock"))
    await round_trip(f"unix://{tmp_path}/redis.sock")


async def test_a_cluster_is_reached_by_any_of_its_nodes(start: Callable[..., RedisProcess]) -> None:
    server = start("--cluster-enabled", "yes", "--cluster-port", str(free_port()), "--requirepass", SECRET)
    with redis.Redis(port=server.port, password=SECRET) as client:
        client.execute_command("CLUSTER", "ADDSLOTSRANGE", "0", "16383")
        await until(lambda: b"cluster_state:ok" in client.execute_command("CLUSTER", "INFO"))
        await round_trip(f"redis+cluster://:{SECRET}@127.0.0.1:{server.port}")
        slots = {client.execute_command("CLUSTER", "KEYSLOT", key) for key in client.scan_iter()}
    assert len(slots) == 1


async def test_a_cluster_that_stops_is_unavailable_and_later_serves_again(start: Callable[..., RedisProcess]) -> None:
    server = start("--cluster-enabled", "yes", "--cluster-port", str(free_port()))
    with redis.Redis(port=server.port) as client:
        client.execute_command("CLUSTER", "ADDSLOTSRANGE", "0", "16383")
        await until(lambda: b"cluster_state:ok" in client.execute_command("CLUSTER", "INFO"))
    url = f"redis+cluster://127.0.0.1:{server.port}"
    async with opened(url) as store:
        server.kill()
        for _ in range(3):
            with pytest.raises(CacheServiceUnavailable):
                await store.sync()
        with pytest.raises(CacheServiceUnavailable, match="--store"):
            await RedisStore.open(url, history=1)
        server.start()
        await sync_at_last(store)
        await announce(store, await joined(store, ANNA), placed("a", ANNA))


async def sync_at_last(store: RedisStore) -> None:
    async def is_synced() -> bool:
        await store.sync()
        return True

    await until(is_synced, reason=lambda: "the store stays away", poll_s=0.05, ignoring=CacheServiceUnavailable)


async def test_tls_accepts_only_the_host_that_the_certificate_names(
    start: Callable[..., RedisProcess], tmp_path: Path
) -> None:
    server = start("--requirepass", SECRET)
    certificate = self_signed(tmp_path)
    async with tls_in_front_of(server.port, certificate) as port:
        url = f"rediss://:{SECRET}@127.0.0.1:{port}/0"
        await round_trip(f"{url}?ssl_ca_certs={certificate}")
        with pytest.raises(CacheServiceUnavailable, match=r"(?i)certificate verify failed"):
            await RedisStore.open(url, history=1)
        with pytest.raises(CacheServiceUnavailable):
            await RedisStore.open(url.replace("rediss", "redis"), history=1, timeout_s=5.0)


def self_signed(directory: Path) -> Path:
    """Write a new key and its certificate for 127.0.0.1 to a file, and return its path."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = directory / "server.pem"
    path.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
    return path


@asynccontextmanager
async def tls_in_front_of(port: int, certificate: Path) -> AsyncIterator[int]:
    """Run a TLS endpoint and yield its port: no server from PyPI was built with TLS of its own."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    open_streams: set[asyncio.StreamWriter] = set()

    async def carry(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with closing(sink):
            while data := await source.read(65_536):
                sink.write(data)
                await sink.drain()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        open_streams.add(writer)
        plain_reader, plain_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(carry(reader, plain_writer), carry(plain_reader, writer), return_exceptions=True)

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for writer in open_streams:
            writer.close()


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("http://x", "redis\\+cluster"),
        ("redis+sentinel://host", "name of the service"),
        ("redis+sentinel://host/cache/first", "database"),
        ("redis", "memory"),
        ("redis://host:port", "port"),
        ("redis://host/0?colour=red", "colour"),
        ("redis+cluster://host?colour=red", "colour"),
    ],
)
def test_urls_that_lead_nowhere_are_refused(url: str, named: str) -> None:
    with pytest.raises(InvalidRequest, match=named):
        connect(url, 1.0)


@pytest.mark.parametrize(
    "url",
    [
        f"http://user:{SECRET}@host",
        f"redis://user:{SECRET}/slash@host/0",
        f"redis://user:{SECRET}@host:port/0",
        f"redis://user:{SECRET}@host/0?colour=red",
        f"redis+sentinel://:{SECRET}@host",
        f"redis+sentinel://:{SECRET}@host:port/cache",
        f"redis://user:{SECRET}@127.0.0.1:1/0",
        f"redis+cluster://user:{SECRET}@127.0.0.1:1",
        f"redis+sentinel://user:{SECRET}@127.0.0.1:1/cache",
        "WRONG PASSWORD",
    ],
)
def test_no_error_repeats_the_password(start: Callable[..., RedisProcess], url: str) -> None:
    if url == "WRONG PASSWORD":
        url = f"redis://:{SECRET}@127.0.0.1:{start('--requirepass', 'another').port}/0"
    command = [sys.executable, "-m", "cache_service", "--port", "0", "--log-level", "DEBUG"]
    environment = {**os.environ, "PALIMPSEST_CACHE_STORE": url}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 1
    assert "store" in result.stderr
    assert SECRET not in result.stdout + result.stderr
    assert SECRET not in repr(ServerConfig(store=url))
