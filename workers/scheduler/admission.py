"""Allocate a request's pages: its own, and those of the entry that serves its prefix.

    decide the depth -> obtain an entry -> wait until it serves the depth and is probed -> allocate private pages
                            |
                            +-- a shared one, found or new, widened if it lacks the depth
                            +-- a private one, if the entries' budget has no room

Too little memory only delays requests. It never changes where a request's prefix ends, nor how deep it is reused.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

from workers.bicache.cache import PrefixCache
from workers.bicache.depth import DepthTable
from workers.bicache.entry import PrefixEntry, PrefixHandle
from workers.kv.page_table import EntryLayout, PrivateLayout, sequence_slots
from workers.kv.pool import PagePool
from workers.kv.storage import PageStorage
from workers.models.base import ModelConfig
from workers.scheduler.policy import Geometry
from workers.scheduler.reuse import ReuseDecision, ReuseRule
from workers.scheduler.task import Allocation, RequestId, Task


@dataclass
class Preparation:
    """Holds the state of a waiting request: its entry, and the conditions that it waits for."""

    handle: PrefixHandle | None = None
    is_hit: bool = True
    """True if the entry that it holds existed before it."""
    is_waiting: bool = False
    """True if the entry must still be built, copied or probed, so that other requests may overtake this one."""
    is_alone: bool = False
    """True if the request may use the whole pool; its entry then serves only its own depth."""

    def release(self) -> None:
        if self.handle:
            self.handle.release()
            self.handle = None


class Admission:
    """Allocates memory to requests. An `ExitStack` frees an allocation; `forget` frees a waiting request's entry."""

    def __init__(
        self,
        model: ModelConfig,
        storage: PageStorage,
        pool: PagePool,
        cache: PrefixCache,
        rule: ReuseRule,
        table: DepthTable,
        *,
        num_entry_depths: int,
    ) -> None:
        """Begin without requests. A new entry serves `num_entry_depths` depths of `table` around the required depth."""
        self._model, self._storage, self._pool, self._cache = model, storage, pool, cache
        self._rule, self._table, self._num_entry_depths = rule, table, num_entry_depths
        self._preparations: dict[RequestId, Preparation] = {}

    def fits(self, task: Task) -> bool:
        """Return whether the request, if it ran alone, would fit into the pool at every reuse depth that it may get.

        Deeper reuse takes more pages, except at full depth, where the entry needs no states.
        """
        deepest = self._rule.nominal_depth(task)
        depths = {deepest, min(deepest, self._model.num_layers - 1)}
        return max(self._num_pages(task, depth) for depth in depths) <= self._pool.num_pages

    def allocate(self, task: Task, *, alone: bool) -> tuple[Allocation, ExitStack] | None:
        """Return the request's pages and entry; None while its entry isn't ready or memory is missing.

        `alone` says that no request runs or waits ahead of it, so that none will free memory. Then, if need be, the
        entries held by the other waiting requests are released.
        """
        preparation = self._preparations.setdefault(task.id, Preparation())
        granted = self._advance(task, preparation)
        if granted is None and alone and not (preparation.is_waiting or preparation.is_alone):
            for other in self._preparations.values():
                other.release()
            preparation.is_alone = True
            granted = self._advance(task, preparation)
        if granted is not None:
            del self._preparations[task.id]
        return granted

    def is_preparing(self, task: Task) -> bool:
        """Return whether the request waits for its entry, so that others may overtake it."""
        preparation = self._preparations.get(task.id)
        return preparation is not None and preparation.is_waiting

    def waits_for(self, task: Task, entry: PrefixEntry) -> bool:
        """Return whether the request, which has no pages yet, holds the entry."""
        preparation = self._preparations.get(task.id)
        return preparation is not None and preparation.handle is not None and preparation.handle.entry is entry

    def forget(self, task: Task) -> None:
        """Free the entry and the pages that a waiting request holds."""
        if preparation := self._preparations.pop(task.id, None):
            preparation.release()

    def _advance(self, task: Task, preparation: Preparation) -> tuple[Allocation, ExitStack] | None:
        """Take the next step of a request's preparation. Return its allocation once it is complete."""
        preparation.is_waiting = False
        reuse = self._rule.decide(task)
        if reuse is not None and reuse.depth == 0:
            preparation.release()
            return self._add_private_pages(task, reuse, preparation)
        depth = self._rule.nominal_depth(task) if reuse is None else reuse.depth
        entry = self._obtain(task, depth, preparation)
        if entry is None:
            return None
        if reuse is None:
            self._cache.request_probe(entry, self._rule.bucket(task), depth)
        elif depth in entry.ready:
            return self._add_private_pages(task, reuse, preparation)
        preparation.is_waiting = not preparation.is_alone
        return None

    def _obtain(self, task: Task, depth: int, preparation: Preparation) -> PrefixEntry | None:
        """Make the request hold an entry that serves `depth` once it is complete, and return that entry."""
        held = preparation.handle.entry if preparation.handle else None
        if held and (held.depths == {depth} if preparation.is_alone else self._let_serve(held, depth)):
            return held
        preparation.release()
        if not preparation.is_alone:
            preparation.handle = self._obtain_shared(task, depth, preparation)
        if preparation.handle is None and task.cut:
            token_ids = task.prompt[: task.cut.num_tokens]
            preparation.handle = self._cache.admit_private(task.cut.key, token_ids, {depth})
            preparation.is_hit = False
        return preparation.handle.entry if preparation.handle else None

    def _obtain_shared(self, task: Task, depth: int, preparation: Preparation) -> PrefixHandle | None:
        """Return a handle on the entry that all requests with this prefix share, if there is room for it."""
        if task.cut is None:
            return None
        key, token_ids = task.cut.key, task.prompt[: task.cut.num_tokens]
        if handle := self._cache.match(key, token_ids):
            if self._let_serve(handle.entry, depth):
                self._cache.count_served(handle.entry)
                return handle
            handle.release()
        kept = {depth} if task.reuse_depth is not None else self._table.depths_near(depth, self._num_entry_depths)
        read = task.context
        content_of = read.at if read and read.num_tokens == len(token_ids) else None
        for depths in (kept, {depth}):
            if new := self._cache.admit(key, token_ids, depths, content_of=content_of):
                preparation.is_hit = False
                self._cache.count_served(new.entry)
                return new
        return None

    def _let_serve(self, entry: PrefixEntry, depth: int) -> bool:
        """Make sure that the entry will serve a depth, if need be by widening it. Return False if that fails."""
        return depth in entry.depths or self._cache.widen(entry, {depth})

    def _add_private_pages(
        self, task: Task, reuse: ReuseDecision, preparation: Preparation
    ) -> tuple[Allocation, ExitStack] | None:
        """Add private pages to the entry. Return None, and keep the hold on the entry, while too few pages are free."""
        layout = self._private_layout(task, reuse.depth)
        num_pages = layout.num_pages(self._storage.page_tokens)
        if not self._cache.make_room(num_pages):
            return None
        handle = preparation.handle
        with ExitStack() as resources:
            if handle:
                resources.enter_context(handle)
            pages = resources.enter_context(self._pool.allocate(num_pages))
            entry = handle.entry if handle else None
            model = self._model
            allocation = Allocation(
                geometry=Geometry(reuse.num_prefix, task.total, reuse.depth, model.num_layers, model.prediction_shift),
                entry=entry,
                is_hit=entry is not None and preparation.is_hit,
                slots=sequence_slots(layout, pages, entry.table if entry else None, self._storage),
                limited_by=reuse.limited_by,
            )
            return allocation, resources.pop_all()

    def _private_layout(self, task: Task, depth: int) -> PrivateLayout:
        prefix = task.cut.num_tokens if task.cut else 0
        return PrivateLayout(self._model.num_layers, task.total, depth, prefix, task.policy.keeps_kv)

    def _num_pages(self, task: Task, depth: int) -> int:
        """Return the number of pages of the request and of an entry for this depth alone, together."""
        return self._private_layout(task, depth).num_pages(self._storage.page_tokens) + self._num_entry_pages(
            task, depth
        )

    def _num_entry_pages(self, task: Task, depth: int) -> int:
        layout = EntryLayout.for_depths(task.cut.num_tokens if task.cut else 0, {depth}, self._model.num_layers)
        return layout.num_pages(self._storage, self._model.hidden_size)
