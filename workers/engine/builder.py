"""Runs the model over prefixes alone: computes the content of entries, and probes how deep it may be reused."""

from __future__ import annotations

import time

import torch

from workers.attention.base import Backend, Reader
from workers.bicache.entry import PrefixEntry
from workers.engine.probe import similarities
from workers.kv.storage import PageStorage
from workers.models.base import DiffusionLM


class EntryBuilder:
    """Fills the pages of prefix entries, one entry at a time."""

    def __init__(
        self, model: DiffusionLM, storage: PageStorage, attention: Backend, *, num_probe_positions: int
    ) -> None:
        self._model, self._storage, self._attention = model, storage, attention
        self._num_probe_positions = num_probe_positions

    def timed_build(self, entry: PrefixEntry) -> float:
        """Build an entry, and return the seconds that it took."""
        started = time.perf_counter()
        self.build(entry)
        if self._storage.device.type == "cuda":
            torch.cuda.synchronize(self._storage.device)
        return time.perf_counter() - started

    def build(self, entry: PrefixEntry) -> None:
        """Run the prefix alone, as deep as the entry has pages for.

        A widened entry is completed from its deepest usable states. K/V that it serves already are overwritten with
        identical values: a prefix alone is always computed in the same shape.
        """
        model, storage, table, layout = self._model, self._storage, entry.table, entry.layout
        begin = max((depth for depth in entry.ready if depth < min(entry.missing)), default=0)
        if begin:
            x = storage.read_states(table.state_pages[begin], layout.num_tokens, model.config.hidden_size)
        else:
            x = model.embed(torch.tensor(entry.token_ids, dtype=torch.int64, device=storage.device))
        cos, sin = model.rope(torch.arange(layout.num_tokens, device=storage.device))
        reader = Reader(table.slots, slice(0, layout.num_tokens), positions=(range(layout.num_tokens),))
        attend = self._attention.plan([reader], model.config.num_layers)
        for index in range(begin, layout.kv_depth):
            layer = model.stack[index]
            q, k, v = layer.qkv(x, cos, sin)
            storage.write(table.slots[index], k, v)
            if index + 1 == model.config.num_layers:
                return
            x = layer.finish(x, attend(index, q))
            if pages := table.state_pages.get(index + 1):
                storage.write_states(pages, x)

    def probe(self, entry: PrefixEntry) -> dict[int, list[float]]:
        """Return, for each bucket that is to be probed, how similar the entry's K/V are to the true ones, by layer."""
        return {
            bucket: similarities(
                entry, bucket, self._model, self._storage, most=most, num_positions=self._num_probe_positions
            )
            for bucket, most in entry.to_probe.items()
        }
