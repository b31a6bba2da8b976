"""A copy of an entry, and who holds it, for tests of how copies travel."""

from __future__ import annotations

import torch

from cache_service.types import PrefixKey
from workers.bicache.copies import EntryCopy, EntryFormat
from workers.deployment import Parcel

FORMAT = EntryFormat("model", "torch.float32", num_layers=2, num_kv_heads=2, head_dim=4, hidden_size=8, itemsize=4)


def a_copy(device: str) -> EntryCopy:
    body = torch.arange(FORMAT.body_bytes(3, 2, 1) // 4, dtype=torch.int32, device=device).view(torch.uint8)
    return EntryCopy(FORMAT, PrefixKey(bytes(20)), (1, 2, 3), 2, (2,), (), body).sealed()


class Holder:
    """What a replica does with a copy that is asked for; an actor."""

    def hand_out(self, device: str) -> Parcel:
        return Parcel.of(a_copy(device), direct=True)
