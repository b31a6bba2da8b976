"""Act as a member that claims one build and never completes it.

`python -m tests.faults.builder TARGET REPLICA KEY_HEX TTL_S` prints `granted`, then nothing while it extends the build,
and `fenced` once the build has ended and a late completion was refused.
"""

from __future__ import annotations

import asyncio
import sys

from cache_service.client.client import CacheClient
from cache_service.core.types import Placement, PrefixKey, ReplicaId
from cache_service.errors import FencedToken, LeaseRefused

EXTENSIONS_PER_LEASE = 3


async def build(target: str, replica: ReplicaId, key: PrefixKey, ttl_s: float) -> None:
    async with CacheClient(target, timeout_s=10.0) as client:
        lease = await client.register(replica, ttl_s)
        build = await client.acquire(lease, key, ttl_s)
        say("granted" if build.replica == replica else "refused")
        while True:
            await asyncio.sleep(ttl_s / EXTENSIONS_PER_LEASE)
            try:
                await client.keep_alive(lease)
                await client.extend(lease, build)
            except (LeaseRefused, FencedToken):
                break
        again = await client.register(replica, ttl_s)
        entry = Placement(key, replica, num_tokens=64, safe_depth=2, size_bytes=4096)
        try:
            await client.complete(again, build, entry)
        except FencedToken:
            say("fenced")


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(build(sys.argv[1], ReplicaId(sys.argv[2]), PrefixKey(bytes.fromhex(sys.argv[3])), float(sys.argv[4])))
