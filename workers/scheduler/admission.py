"""Where a request's prefix ends, how deep it is reused, and which pages it gets."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from workers.bicache.cache import PrefixCache, PrefixHandle
from workers.bicache.depth import (
    PROBE_BUCKET_PERCENT,
    DepthLimits,
    DepthTable,
    nominal_suffix,
    ratio_percent,
    trusted_depth,
)
from workers.bicache.entry import PrefixEntry
from workers.config import BiCacheConfig
from workers.kv.page_table import PrivateLayout, sequence_slots
from workers.kv.pool import PagePool
from workers.kv.storage import PageStorage
from workers.models.base import ModelConfig
from workers.scheduler.policy import Geometry
from workers.scheduler.task import Placing, RequestId, Task


@dataclass(frozen=True)
class Cut:
    """A decided boundary: the prefix's length, its reuse depth, and the entry that makes the depth possible."""

    prefix: int
    depth: int = 0
    handle: PrefixHandle | None = None
    hit: bool = False


class Admission:
    """Gives requests their place in memory. What a request got is in its `ExitStack`; until then, `forget` frees it."""

    def __init__(
        self,
        model: ModelConfig,
        storage: PageStorage,
        pool: PagePool,
        cache: PrefixCache,
        depths: DepthTable,
        limits: DepthLimits,
        config: BiCacheConfig,
    ) -> None:
        self._model, self._storage, self._pool, self._cache, self._depths = model, storage, pool, cache, depths
        self._limits, self._config = limits, config
        self._preparing: dict[RequestId, Cut] = {}
        """Cuts of waiting requests whose entries are yet to be built or probed."""

    def fits(self, task: Task) -> bool:
        """Whether the request, alone and without an entry, fits into the whole pool."""
        return self._private(task, Cut(0)).num_pages(self._storage.page_tokens) <= self._pool.num_pages

    def place(self, task: Task, *, alone: bool) -> tuple[Placing, ExitStack] | None:
        """Memory for the request, or None until its entry is ready or others free some.

        `alone` says that nobody will: then a request that has no room beside its entry is placed without one.
        """
        prepared = self._preparing.pop(task.id, None)
        cut = self._cut(task) if prepared is None else prepared
        if cut.handle and not self._is_prepared(task, cut, cut.handle.entry):
            self._preparing[task.id] = cut
            return None
        placed = self._settle(task, self._trusted(task, cut))
        if placed is None and alone:
            return self._settle(task, Cut(self._longest(task)))
        return placed

    def is_preparing(self, task: Task) -> bool:
        """Whether the request waits for its entry to be built, copied or probed."""
        return task.id in self._preparing

    def forget(self, task: Task) -> None:
        """Let go of what a request that is still waiting holds."""
        cut = self._preparing.pop(task.id, None)
        if cut and cut.handle:
            cut.handle.release()

    def learn(self, entry: PrefixEntry, bucket: int, similarities: Sequence[float]) -> None:
        """Take in how like the true K/V an entry's are in one ratio bucket, layer by layer."""
        entry.to_probe.pop(bucket, None)
        kept = entry.layout.kv_depth
        trusted = trusted_depth(similarities, kept, self._config.probe_similarity)
        entry.trusted[bucket] = trusted
        if trusted < min(kept, self._depths.most_within(bucket)):
            entry.drifted[bucket] = trusted

    def _may_choose(self, task: Task) -> bool:
        """Whether the depth is ours to choose; the published policies take the table at its word."""
        return task.policy.adaptive and task.reuse_depth is None

    def _probes(self, task: Task) -> bool:
        return self._may_choose(task) and self._config.probe_positions > 0

    def _is_prepared(self, task: Task, cut: Cut, entry: PrefixEntry) -> bool:
        """Whether a depth can be decided; asks for a probe of the entry where one is missing."""
        if entry.awaited:
            return False
        bucket = self._bucket(task, cut.prefix)
        if entry.dropped or bucket in entry.trusted or not self._probes(task):
            return True
        entry.to_probe[bucket] = nominal_suffix(cut.prefix, bucket, self._model.context_length)
        return False

    def _trusted(self, task: Task, cut: Cut) -> Cut:
        """The cut at the largest kept depth that all probes allow, ours and others'; with none, without an entry."""
        if cut.handle is None or not (self._may_choose(task) or cut.handle.entry.dropped):
            return cut
        entry, bucket = cut.handle.entry, self._bucket(task, cut.prefix)
        found = (entry.trusted.get(bucket), self._limits.depth(entry.key, bucket), 0 if entry.dropped else None)
        limit = min((cut.depth, *(depth for depth in found if depth is not None)))
        depth = max((kept for kept in entry.depths if kept <= limit), default=0)
        if depth == 0:
            cut.handle.release()
            return Cut(self._longest(task))
        return replace(cut, depth=depth)

    def _bucket(self, task: Task, num_prefix: int) -> int:
        """Lower edge of the ratios that share a probe."""
        return ratio_percent(num_prefix, task.total) // PROBE_BUCKET_PERCENT * PROBE_BUCKET_PERCENT

    def _cut(self, task: Task) -> Cut:
        """1. The longest boundary with an entry that serves its depth. 2. A new entry at the longest boundary.
        3. Without one: depth 0, which recomputes the whole prefix at every refresh.
        """
        if not task.policy.reuses_prefix:
            return Cut(0)
        for candidate in reversed(task.prefixes):
            usable = self._usable_depths(task, candidate.num_tokens)
            token_ids = task.prompt[: candidate.num_tokens]
            if usable and (handle := self._cache.match(candidate.key, token_ids, usable)):
                return Cut(candidate.num_tokens, max(usable & handle.entry.depths), handle, hit=True)
        longest = self._longest(task)
        depth = self._depth(task, longest)
        if depth and longest:
            kept = {depth} if task.reuse_depth is not None else self._depths.near(depth, self._config.entry_depths)
            handle = self._cache.admit(task.prefixes[-1].key, task.prompt[:longest], kept, asker=task.id)
            if handle:
                read = task.context
                handle.entry.content_of = read.at if read and read.num_tokens == longest else None
                return Cut(longest, depth, handle)
        return Cut(longest)

    def _settle(self, task: Task, cut: Cut) -> tuple[Placing, ExitStack] | None:
        """Add private pages to a cut; gives the cut's entry back where there are none."""
        layout = self._private(task, cut)
        num_pages = layout.num_pages(self._storage.page_tokens)
        with ExitStack() as resources:
            if cut.handle:
                resources.enter_context(cut.handle)
            if not self._cache.make_room(num_pages):
                return None
            pages = resources.enter_context(self._pool.allocate(num_pages))
            entry = cut.handle.entry if cut.handle else None
            placing = Placing(
                geometry=Geometry(
                    cut.prefix, task.total, cut.depth, self._model.num_layers, self._model.prediction_shift
                ),
                entry=entry,
                hit=cut.hit,
                slots=sequence_slots(layout, pages, entry.table if entry else None, self._storage),
            )
            return placing, resources.pop_all()

    def _private(self, task: Task, cut: Cut) -> PrivateLayout:
        return PrivateLayout(self._model.num_layers, task.total, cut.depth, cut.prefix, task.policy.keeps_kv)

    def _longest(self, task: Task) -> int:
        return task.prefixes[-1].num_tokens if task.policy.reuses_prefix and task.prefixes else 0

    def _depth(self, task: Task, num_prefix: int) -> int:
        if task.policy.full_depth:
            return self._model.num_layers
        if task.reuse_depth is not None:
            return min(task.reuse_depth, self._model.num_layers)
        return self._depths.lookup(ratio_percent(num_prefix, task.total))

    def _usable_depths(self, task: Task, num_prefix: int) -> frozenset[int]:
        """What an entry must serve to be a hit: the depth itself or, where the policy may choose, one near below."""
        depth = self._depth(task, num_prefix)
        return frozenset(range((depth + 1) // 2 if self._may_choose(task) else depth, depth + 1)) - {0}
