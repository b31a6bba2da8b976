"""Choose the size of Ray's object store on one machine; copies of prefix entries pass through it. Pure.

A copy that doesn't fit goes through files, tens of times slower; so does everything if the store itself doesn't fit in
shared memory. The unused part of the store costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from cluster.config import ClusterConfig
from cluster.errors import StartError
from workers.models.base import ModelConfig

MIN_BYTES = 128 << 20
"""Enough for everything but copies: chunks are small and travel inline."""
COPIES_A_REPLICA = 2
"""Copies of one replica that are in progress at a time: one for a request, and one prefetched."""
SHARE_OF_MEMORY, SHARE_OF_SHARED = 0.3, 0.9
"""Shares of memory that `auto` may give the store; the rest is for models and other programs."""


@dataclass(frozen=True)
class Memory:
    """Describes the memory of one machine, or of the container that this runs in."""

    total_bytes: int
    shared_bytes: int
    """Free bytes in /dev/shm, where Ray keeps the store."""


@dataclass(frozen=True)
class StoreSize:
    """Holds the chosen size of the object store."""

    num_bytes: int
    warning: str | None = None
    """A message to the operator."""


def heaviest_copy_bytes(model: ModelConfig, entry_depths: int, itemsize: int, entry_bytes: int | None) -> int:
    """Return the bytes of a copy that fills the context length: K and V of all layers, `entry_depths` boundary states.

    `itemsize` is that of the compute dtype. `entry_bytes` is all that a replica's entries may fill, if that is known.
    """
    elements = model.kv_elements_per_token + entry_depths * model.hidden_size
    heaviest = model.context_length * elements * itemsize
    return heaviest if entry_bytes is None else min(heaviest, entry_bytes)


def carries_copies(config: ClusterConfig, num_replicas: int) -> bool:
    """Return whether the configuration lets copies go through the object store."""
    coherence = config.worker.coherence
    return num_replicas > 1 and coherence.transfer != "never" and coherence.tensor_transport != "nixl"


def store_size(config: ClusterConfig, num_replicas: int, copy_bytes: int, memory: Memory) -> StoreSize:
    """Return the configured size; `auto` gives room for the copies of all replicas, within the machine's memory.

    Raises StartError for a size that this machine doesn't have.
    """
    copied_bytes = copy_bytes if carries_copies(config, num_replicas) else 0
    asked = config.resources.object_store_bytes
    if asked == "auto":
        wanted = max(MIN_BYTES, COPIES_A_REPLICA * num_replicas * copied_bytes)
        room = int(min(SHARE_OF_MEMORY * memory.total_bytes, SHARE_OF_SHARED * memory.shared_bytes))
        num_bytes = max(MIN_BYTES, min(wanted, room))
    else:
        check_room(asked, memory)
        num_bytes = asked
    if num_bytes < copied_bytes:
        return StoreSize(num_bytes, size_error(num_bytes, copied_bytes, memory))
    return StoreSize(num_bytes)


def check_room(asked: int, memory: Memory) -> None:
    for free_bytes, what in ((memory.total_bytes, "memory"), (memory.shared_bytes, "room in /dev/shm")):
        if asked > free_bytes:
            raise StartError(
                f"resources.object_store_bytes is {mib(asked)}, and this machine has {mib(free_bytes)} of {what}: "
                "lower it, set it to auto, or give a container more (docker run --shm-size)"
            )


def size_error(num_bytes: int, copied_bytes: int, memory: Memory) -> str:
    return (
        f"copies of prefix entries may take up to {mib(copied_bytes)}, and Ray's object store has {mib(num_bytes)}: "
        "what finds no room there goes through files, and is slow. Set resources.object_store_bytes, with more room in "
        f"/dev/shm (now {mib(memory.shared_bytes)}; docker run --shm-size), or worker.coherence.transfer to never"
    )


def mib(num_bytes: int) -> str:
    return f"{num_bytes >> 20} MiB"
