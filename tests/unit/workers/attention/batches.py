"""Random batches of readers over a page storage, as the engine would lay them out."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from workers.attention.base import Reader
from workers.kv.pool import PageId
from workers.kv.storage import PageStorage
from workers.models.base import ModelConfig

NUM_LAYERS = 4


@dataclass(frozen=True)
class Case:
    storage: PageStorage
    readers: list[Reader]
    num_base: int
    num_rows: int
    """Base and deep ones."""

    def q(self, config: ModelConfig, layer: int) -> Tensor:
        """Rows that ask in the layer or may later."""
        count = self.num_base if layer == NUM_LAYERS - 1 else self.num_rows
        return torch.randn(count, config.num_heads, config.head_dim).to(self.storage.rows)


def asking(case: Case, layer: int) -> Tensor:
    """Rows that ask in a layer, sequence by sequence."""
    rows: list[int] = []
    for reader in case.readers:
        rows += range(reader.base.start, reader.base.stop)
        if reader.asks_deep(layer, NUM_LAYERS):
            rows += range(reader.deep.start, reader.deep.stop)
    return torch.tensor(rows)


def random_case(config: ModelConfig, dtype: torch.dtype, device: torch.device, seed: int, longest: int) -> Case:
    """Groups that share an entry to different depths, lone sequences, and some that refresh."""
    rng = Random(seed)
    pages, page_tokens = 4096, 4
    page_bytes = 2 * page_tokens * config.num_kv_heads * config.head_dim * dtype.itemsize
    storage = PageStorage(config, pool_bytes=pages * page_bytes, page_tokens=page_tokens, dtype=dtype, device=device)
    storage.rows.copy_(torch.randn(storage.rows.shape, generator=torch.Generator().manual_seed(seed)))
    readers: list[Reader] = []
    row = 0

    def slots(num: int) -> Tensor:
        return storage.slots([PageId(rng.randrange(pages)) for _ in range(-(-num // page_tokens))], num)

    for group in range(3):
        depth, shared = rng.randint(1, NUM_LAYERS), rng.randint(1, longest)
        entry = [slots(shared) for _ in range(NUM_LAYERS)]
        for _ in range(rng.randint(1, 4)):
            suffix, own = rng.randint(1, longest), rng.randint(1, 40)
            layers = [
                torch.cat((entry[layer] if layer < depth else slots(shared), slots(suffix)))
                for layer in range(NUM_LAYERS)
            ]
            readers.append(
                Reader(torch.stack(layers), slice(row, row + own), depth=depth, entry=group, num_shared=shared)
            )
            row += own
    for _ in range(2):
        own, total = rng.randint(1, 40), rng.randint(1, longest)
        readers.append(Reader(slots(total).expand(NUM_LAYERS, -1), slice(row, row + own)))
        row += own
    num_base = row
    for index in rng.sample(range(len(readers)), 3):
        reader, joining = readers[index], rng.randint(1, 200)
        readers[index] = Reader(
            reader.slots, reader.base, slice(row, row + joining), reader.depth, reader.entry, reader.num_shared
        )
        row += joining
    return Case(storage, readers, num_base, row)
