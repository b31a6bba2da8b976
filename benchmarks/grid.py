"""A grid lists the workloads under which policies are compared with their rooflines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from benchmarks.costs import COST
from benchmarks.load import Workload
from benchmarks.parts import Parts

BAR_PREFIX = 2048


class Sharing(StrEnum):
    """Says how many prefixes the requests of a batch have."""

    ONE = "one"
    FOUR = "four"
    DISTINCT = "distinct"

    def num_prefixes(self, batch: int) -> int:
        return {Sharing.ONE: 1, Sharing.FOUR: min(4, batch), Sharing.DISTINCT: batch}[self]


@dataclass(frozen=True)
class Grid:
    """Combines all values; those of the bars come first, so that an interrupted run has them."""

    prefix: tuple[int, ...] = (BAR_PREFIX, 512, 1024, 3500)
    """Tokens of a prefix."""
    batch: tuple[int, ...] = (64, 16, 1, 4)
    prefixes: tuple[Sharing, ...] = tuple(Sharing)
    policy: tuple[str, ...] = tuple(COST)

    def workloads(self) -> Iterator[Workload]:
        """Yield each workload once, since four prefixes for one request are one."""
        workloads = (
            Workload(prefix, batch, sharing.num_prefixes(batch))
            for sharing in self.prefixes
            for prefix in self.prefix
            for batch in self.batch
        )
        yield from dict.fromkeys(workloads)

    def missing(self, model: str, parts: Parts) -> Iterator[tuple[Workload, Sequence[str]]]:
        """Yield the workloads of which an earlier part lacks a policy.

        Each comes with all policies, which are measured again together, so that they can be compared.
        """
        for workload in self.workloads():
            columns = {
                "model": model,
                "prefix": workload.prefix,
                "batch": workload.batch,
                "prefixes": workload.num_prefixes,
            }
            if parts.lacks({**columns, "policy": policy} for policy in self.policy):
                yield workload, self.policy


QUICK = Grid((BAR_PREFIX,), (16,), (Sharing.ONE,), ("none", "dual", "bicache-dual", "lean", "lean+anchors"))
