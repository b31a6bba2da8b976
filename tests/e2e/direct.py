"""Two ends of a copy that is read out of a process's memory, as Ray actors.

All of it happens in actors: a process that once had to do with nixl has a thread that never rests.
"""

from __future__ import annotations

import sys

import torch

from cache_service.core.types import PrefixKey
from workers.bicache.copies import EntryCopy, EntryFormat
from workers.config import CoherenceConfig
from workers.deployment import NoDirectTransportError, PackedCopy, has_direct_transport

FORMAT = EntryFormat(
    "model", "evidence", "torch.float32", num_layers=2, num_kv_heads=2, head_dim=4, hidden_size=8, itemsize=4
)


def a_copy(device: str) -> EntryCopy:
    body = torch.arange(FORMAT.body_bytes(3, 2, 1) // 4, dtype=torch.int32, device=device).view(torch.uint8)
    return EntryCopy(FORMAT, PrefixKey(bytes(20)), (1, 2, 3), 2, (2,), (), body).sealed()


class Holder:
    """An actor that hands out a copy."""

    def send_packed_copy(self, device: str) -> PackedCopy:
        return PackedCopy.pack(a_copy(device), direct=True)


class Reader:
    """An actor that reads the copy."""

    def read(self, packed: PackedCopy, timeout_s: float) -> tuple[str, str, bytes]:
        """Return the transport that brought the copy, the device that it is on, and its digest."""
        copy = packed.unpack(timeout_s)
        return copy.transport, copy.body.device.type, copy.digest()

    def has_transport(self, config: CoherenceConfig) -> bool:
        return has_direct_transport(config, torch.device("cpu"), 2)


class WithoutNixl:
    """A replica without nixl."""

    def complaint(self) -> str:
        sys.modules["nixl"] = None  # type: ignore[assignment]
        try:
            has_direct_transport(CoherenceConfig(tensor_transport="nixl"), torch.device("cpu"), 2)
        except NoDirectTransportError as error:
            return str(error)
        return ""
