"""Decide the reuse depth of a request's prefix. Pure: only the request, the depth table and evidence count.

The content of the cache, earlier requests and other replicas' entries affect only how long an answer takes, never the
answer itself.

    policy, request                       depth                                          may be lowered by
    request names `reuse_depth`           that                                           nothing
    prefix-naive                          all layers                                     nothing
    bicache, bicache-dual                 the table's at the prefix's share              nothing
    lean                                  the table's at the prefix's share              the prefix's own probe and,
                                                                                         unless it is deterministic,
                                                                                         others' drift reports
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cache_service.core.types import PrefixKey
from workers.api import DepthLimiter, PrefixCandidate
from workers.bicache.depth import DepthLimits, DepthTable, Evidence, Finding, bucket_of, ratio_percent
from workers.config import BiCacheConfig
from workers.scheduler.task import Task


@dataclass(frozen=True)
class ReuseDecision:
    """Holds the cut of a request, and the depth to which its prefix is reused."""

    num_prefix: int
    depth: int
    limited_by: DepthLimiter | None = None
    """The evidence that lowered the depth; None if it is the table's or the request's depth."""


class ReuseRule:
    """Decides the reuse depth of every request to one model."""

    def __init__(
        self, num_layers: int, table: DepthTable, evidence: Evidence, limits: DepthLimits, config: BiCacheConfig
    ) -> None:
        self._num_layers, self._table, self._evidence, self._limits = num_layers, table, evidence, limits
        self._has_probes, self._similarity = config.probe_positions > 0, config.probe_similarity

    def decide(self, task: Task) -> ReuseDecision | None:
        """Return the request's cut and depth; None until its prefix has been probed at its ratio."""
        if task.cut is None:
            return ReuseDecision(0, 0)
        depth, limited_by = self.nominal_depth(task), None
        if depth and task.chooses_depth:
            key, bucket = task.cut.key, self.bucket(task)
            probed = self._probed_depth(key, bucket, depth) if self._has_probes else depth
            if probed is None:
                return None
            reported = None if task.deterministic else self._limits.depth(key, bucket)
            for limit, limiter in ((probed, DepthLimiter.PROBE), (reported, DepthLimiter.REPORT)):
                if limit is not None and limit < depth:
                    depth, limited_by = limit, limiter
        return ReuseDecision(task.cut.num_tokens, depth, limited_by)

    def nominal_depth(self, task: Task) -> int:
        """Return the reuse depth before any evidence lowers it."""
        if task.cut is None:
            return 0
        if task.reuse_depth is not None:
            return min(task.reuse_depth, self._num_layers)
        return self._num_layers if task.policy.full_depth else self._table.lookup(self._ratio(task, task.cut))

    def bucket(self, task: Task) -> int:
        """Return the ratio bucket whose probe decides about the request."""
        return bucket_of(self._ratio(task, task.cut)) if task.cut else 0

    def judge_probe(self, key: PrefixKey, bucket: int, similarities: Sequence[float]) -> Finding:
        """Return and remember the finding of a probe, from the similarity of K/V to the true ones in each layer."""
        finding = Finding.from_similarities(similarities, self._similarity)
        self._evidence.record(key, {bucket: finding})
        return finding

    def _probed_depth(self, key: PrefixKey, bucket: int, most: int) -> int | None:
        finding = self._evidence.find(key, bucket)
        return None if finding is None else finding.depth(most, self._num_layers)

    def _ratio(self, task: Task, cut: PrefixCandidate) -> int:
        return ratio_percent(cut.num_tokens, task.total)
