"""The grid of workloads under which policies are held to their roofline."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from benchmarks.costs import COST
from benchmarks.load import Workload
from benchmarks.parts import Parts

BAR_PREFIX = 2048


class Sharing(StrEnum):
    """How many prefixes the requests of a batch stand behind."""

    ONE = "one"
    FOUR = "four"
    DISTINCT = "distinct"

    def num_prefixes(self, batch: int) -> int:
        return {Sharing.ONE: 1, Sharing.FOUR: min(4, batch), Sharing.DISTINCT: batch}[self]


@dataclass(frozen=True)
class Grid:
    """Every combination; those that bars are read from come first, so that a run that is cut off has them."""

    prefix: tuple[int, ...] = (BAR_PREFIX, 512, 1024, 3500)
    """Tokens."""
    batch: tuple[int, ...] = (64, 16, 1, 4)
    prefixes: tuple[Sharing, ...] = tuple(Sharing)
    policy: tuple[str, ...] = tuple(COST)

    def workloads(self) -> Iterator[Workload]:
        """Each once: four prefixes for one request are one."""
        found = (
            Workload(prefix, batch, sharing.num_prefixes(batch))
            for sharing in self.prefixes
            for prefix in self.prefix
            for batch in self.batch
        )
        yield from dict.fromkeys(found)

    def missing(self, model: str, parts: Parts) -> Iterator[tuple[Workload, Sequence[str]]]:
        """Workloads that an earlier part has not measured all policies of; those are measured anew together, so that
        they can be compared.
        """
        for workload in self.workloads():
            where = {
                "model": model,
                "prefix": workload.prefix,
                "batch": workload.batch,
                "prefixes": workload.num_prefixes,
            }
            if parts.lacks({**where, "policy": policy} for policy in self.policy):
                yield workload, self.policy


QUICK = Grid((BAR_PREFIX,), (16,), (Sharing.ONE,), ("none", "dual", "bicache-dual", "lean", "lean+anchors"))
