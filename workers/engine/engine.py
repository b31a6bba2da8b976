"""The engine: single-threaded, synchronous, driven from outside by `step`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

from cache_service.core.types import Context, ReplicaId
from workers.api import GenerateRequest, WorkerStats
from workers.bicache.cache import PrefixCache
from workers.bicache.copies import EntryFormat
from workers.bicache.depth import DepthLimits, DepthTable, Evidence
from workers.bicache.entry import Changes
from workers.bicache.entry_table import Entries
from workers.config import BiCacheConfig, EngineConfig, KVConfig
from workers.engine.memory import memory_budget
from workers.engine.runner import Runner, backend_for
from workers.engine.validation import rebase, resolve
from workers.errors import WorkerError
from workers.kv.pool import PagePool
from workers.kv.storage import PageStorage
from workers.models.loader import LoadedModel
from workers.scheduler.admission import Admission
from workers.scheduler.plan import Question
from workers.scheduler.reuse import ReuseRule
from workers.scheduler.scheduler import Outcome, Scheduler
from workers.scheduler.task import RequestId

T = TypeVar("T")


class Engine:
    """Requests in, chunks out, one denoising step at a time."""

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        engine: EngineConfig,
        kv: KVConfig,
        bicache: BiCacheConfig,
        replica: ReplicaId,
        device: torch.device,
        dtype: torch.dtype,
        profile: int = 0,
        shares_builds: bool = False,
    ) -> None:
        """`device` and `dtype` are the model's. `profile` is the version of its depth table. With `shares_builds`, new
        entries are built when `entries.clear` says so: somebody outside must listen to the changes.
        """
        config = loaded.config
        self._model, self._engine, self._bicache, self._replica = config, engine, bicache, replica
        memory = memory_budget(kv, device)
        storage = PageStorage(
            config, pool_bytes=memory.pool_bytes, page_tokens=kv.page_tokens, dtype=dtype, device=device
        )
        self._page_bytes = storage.page_bytes
        self._pool = PagePool(storage.num_pages)
        self._cache = PrefixCache(self._pool, storage, config, budget_bytes=memory.entry_bytes, awaits=shares_builds)
        table, evidence, limits = DepthTable.for_model(config, loaded.depth_table), Evidence(), DepthLimits(profile)
        self.fingerprint = digest(loaded.fingerprint, bicache.cut_share)
        """Tells apart whatever would give other prefix entries for the same text."""
        format_ = EntryFormat(
            fingerprint=self.fingerprint,
            evidence=digest(device_kind(device), table.steps, bicache.probe_positions, bicache.probe_similarity),
            dtype=str(dtype),
            num_layers=config.num_layers,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            hidden_size=config.hidden_size,
            itemsize=dtype.itemsize,
        )
        self.entries = Entries(self._cache, storage, evidence, limits, config, format_)
        rule = ReuseRule(config.num_layers, table, evidence, limits, bicache)
        admission = Admission(
            config, storage, self._pool, self._cache, rule, table, num_entry_depths=bicache.entry_depths
        )
        self.scheduler = Scheduler(engine, config, admission, self._cache, rule, replica=replica)
        attention = backend_for(storage, config)
        self.runner = Runner(loaded.model, storage, attention, num_probe_positions=bicache.probe_positions)

    def warm_up(self) -> Iterator[int]:
        """Prepare what the first requests would else wait for; yields the rows of each graph that is recorded."""
        yield from self.runner.warm_up()

    @property
    def has_work(self) -> bool:
        """Whether a step would do something; without it, requests may still wait for answers to their questions."""
        return self.scheduler.has_work

    @property
    def page_bytes(self) -> int:
        return self._page_bytes

    @property
    def num_used_pages(self) -> int:
        return self._pool.num_used

    def submit(self, request: GenerateRequest) -> None:
        """Queue a request. Raises InvalidRequestError or OverloadedError, and then nothing is kept of it."""
        self.scheduler.add(resolve(request, self._model, self._engine, self._bicache))

    def abort(self, request_id: str) -> None:
        """Forget a request and free what it holds; an unknown or finished one is left alone."""
        self.scheduler.abort(RequestId(request_id))

    def step(self) -> list[Outcome]:
        """One pass of every request that has its turn; returns newly committed tokens, ends and failures."""
        plan = self.scheduler.schedule()
        result = self.runner.run(plan)
        return self.scheduler.commit(plan, result)

    def with_entries(self, command: Callable[[Entries], T]) -> T:
        """Run `command` on the entry table between two steps, for another thread."""
        self.scheduler.resume()
        return command(self.entries)

    def take_questions(self) -> list[Question]:
        """What requests in follow mode want to know; each question is to be answered once."""
        return self.scheduler.take_questions()

    def answer(self, question: Question, newest: Context | None) -> list[Outcome]:
        """Let the asking request go on, with `newest` where it may not lie so far behind, else as it is.

        None says that nothing newer is known: the context is gone, or nobody could be asked. An answer that nobody
        waits for any more changes nothing. Returns the failure of a request that can't go on with `newest`.
        """
        sequence = self.scheduler.asking(question)
        if sequence is None:
            return []
        if newest is None or not question.read.is_behind(newest.epoch):
            self.scheduler.go_on(sequence)
            return []
        try:
            self.scheduler.move(sequence, rebase(sequence.task, newest, self._model, self._bicache))
        except WorkerError as error:
            return [self.scheduler.fail(sequence, error)]
        return []

    def fail_all(self, error: WorkerError) -> list[Outcome]:
        """End every request with `error`."""
        return self.scheduler.fail_all(error)

    def take_changes(self) -> Changes:
        """Prefix entries that came and went since the last call."""
        return self._cache.take_changes()

    def stats(self) -> WorkerStats:
        """Counters and load; may be called from any thread."""
        counters = self.scheduler.counters
        return WorkerStats(
            replica=self._replica,
            num_running=self.scheduler.num_running,
            num_waiting=self.scheduler.num_waiting,
            num_requests=counters.num_requests,
            num_forwards=counters.num_forwards,
            num_canvas_tokens=counters.num_canvas_tokens,
            num_prefix_hits=counters.num_prefix_hits,
            num_prefix_misses=counters.num_prefix_misses,
            prefix_entries=self._cache.num_entries,
            prefix_bytes=self._cache.size_bytes,
            num_aborted=counters.num_aborted,
            num_moved=counters.num_moved,
        )

    def check_integrity(self) -> None:
        """Raises AssertionError where pages, entries and requests contradict each other."""
        self._cache.check_integrity()

    def __repr__(self) -> str:
        load = f"{self.scheduler.num_running} running, {self.scheduler.num_waiting} waiting"
        return f"<Engine [{load} | {self._cache!r} {self._pool!r}]>"


def device_kind(device: torch.device) -> str:
    """Return what two devices have in common that compute the same numbers: the GPU's model, or `cpu`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def digest(*parts: object) -> str:
    """Return a hex digest of values by their representations."""
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()
