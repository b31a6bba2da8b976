"""Change this replica's entries on behalf of others. Runs on the engine's thread, between two steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import Future
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from cache_service.core.types import Context, DepthLimit, PrefixKey
from workers.bicache.cache import PrefixCache
from workers.bicache.copies import EntryCopy, EntryFormat
from workers.bicache.depth import DepthLimits, Evidence
from workers.bicache.entry import EntryState, PrefixEntry
from workers.kv.storage import PageStorage
from workers.models.base import ModelConfig

T = TypeVar("T")


class EntryCommands:
    """Carries out other threads' commands on the entries."""

    def __init__(
        self,
        cache: PrefixCache,
        storage: PageStorage,
        evidence: Evidence,
        limits: DepthLimits,
        model: ModelConfig,
        format_: EntryFormat,
    ) -> None:
        self._cache, self._storage, self._model = cache, storage, model
        self._evidence, self._limits = evidence, limits
        self.format = format_

    def allow_build(self, key: PrefixKey) -> None:
        """Let the entry be built here, if it is still awaited."""
        if entry := self._cache.find(key):
            self._cache.allow_build(entry)

    def retire(self, key: PrefixKey, *, successor: Context | None) -> bool:
        """Retire an entry whose content is out of date, and reserve one for its `successor`, if it fits.

        Return whether there was an entry to retire.
        """
        entry = self._cache.retire(key)
        if entry is not None and successor is not None:
            self._cache.reserve(successor.key, successor.token_ids, entry.depths)
        return entry is not None

    def update_limits(self, lifted: Iterable[PrefixKey], limits: Iterable[DepthLimit]) -> None:
        """Forget the limits of the keys `lifted`, then take in `limits`."""
        for key in lifted:
            self._limits.lift(key)
        self.record_limits(limits)

    def replace_limits(self, limits: Iterable[DepthLimit]) -> None:
        """Forget all limits, whatever reported them, then take in `limits`."""
        self._limits.lift_all()
        self.record_limits(limits)

    def record_limits(self, limits: Iterable[DepthLimit]) -> None:
        """Record limits that other replicas report. They apply to requests admitted later, unless deterministic."""
        for limit in limits:
            self._limits.record(limit)

    def export(self, key: PrefixKey, depths: Collection[int] | None) -> EntryCopy | None:
        """Return a copy of the entry, without digest, for `depths`; None if no live entry serves all of them."""
        entry = self._cache.find(key)
        if entry is None:
            return None
        served = entry.depths if depths is None else frozenset(depths)
        if not served or not served <= entry.ready:
            return None
        kv_depth = max(served)
        state_depths = tuple(depth for depth in entry.layout.state_depths if depth in served)
        return EntryCopy(
            format=self.format,
            key=key,
            token_ids=entry.token_ids,
            kv_depth=kv_depth,
            state_depths=state_depths,
            findings=tuple(sorted(entry.findings.items())),
            body=self._body(entry, kv_depth, state_depths),
        )

    def install(self, copy: EntryCopy) -> bool:
        """Make the awaited entry under the copy's key live. Return False if none awaits this copy.

        Depths that were added while the copy was on its way are built here.
        """
        entry = self._cache.find(copy.key)
        if entry is None or entry.state is not EntryState.AWAITED:
            return False
        if entry.token_ids != copy.token_ids or not copy.depths <= entry.depths:
            return False
        findings = dict(copy.findings)
        self._fill(entry, copy)
        self._evidence.record(copy.key, findings)
        self._cache.mark_copied(entry, copy.depths, findings)
        return True

    def adopt(self, copy: EntryCopy) -> bool:
        """Add a copy before any request needs it. Return False if its key is taken, or it doesn't fit."""
        return self._cache.reserve(copy.key, copy.token_ids, copy.depths) is not None and self.install(copy)

    def _body(self, entry: PrefixEntry, kv_depth: int, state_depths: tuple[int, ...]) -> Tensor:
        parts: list[Tensor] = []
        for layer in range(kv_depth):
            parts += self._storage.read(entry.table.slots[layer])
        for depth in state_depths:
            parts.append(self._read_states(entry, depth))
        return torch.cat([part.flatten() for part in parts]).view(torch.uint8)

    def _read_states(self, entry: PrefixEntry, depth: int) -> Tensor:
        pages = entry.table.state_pages[depth]
        return self._storage.read_states(pages, entry.layout.num_tokens, self._model.hidden_size)

    def _fill(self, entry: PrefixEntry, copy: EntryCopy) -> None:
        num_tokens, storage = entry.layout.num_tokens, self._storage
        heads = (num_tokens, self._model.num_kv_heads, self._model.head_dim)
        rest = copy.body
        for layer in range(copy.kv_depth):
            k, rest = self._take(rest, heads)
            v, rest = self._take(rest, heads)
            storage.write(entry.table.slots[layer], k, v)
        for depth in copy.state_depths:
            states, rest = self._take(rest, (num_tokens, self._model.hidden_size))
            storage.write_states(entry.table.state_pages[depth], states)

    def _take(self, body: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Return the next tensor of a body, and the remaining bytes."""
        size = math.prod(shape) * self.format.itemsize
        part = body[:size].to(self._storage.device)
        return part.view(self._storage.rows.dtype).view(shape), body[size:]


class EngineThread(Protocol):
    """Runs commands on the engine's thread."""

    def call(self, command: Callable[[EntryCommands], T]) -> Future[T]:
        """Run `command` between two steps. If the engine has ended, this or the future raises WorkerError."""
        ...
