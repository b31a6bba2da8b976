"""Define the cache policies as schedules of passes.

A *pass* computes some rows of one sequence in every layer, and may let prefix rows join at the reuse depth b with
the entry's hidden states. Whatever a pass computes overwrites the request's kept K/V; its rows attend to every
position: the entry's K/V for the prefix in layers < b, the request's own everywhere else. So a policy is only a
choice of rows:

                      canvas start       block start              in a block
    none              0..T               0..T                     0..T
    dual              0..T               0..T                     block
    bicache           P..T every step; the prefix joins at b in every R-th
    prefix-naive      P..T every step; nothing joins (b = L)
    bicache-dual      P..T, decoding nothing; the prefix joins if t mod R = 0, then the block's rows, where it joins
                      again if t mod R = 0 falls inside the block
    lean              P..T; the prefix joins if R steps    block
                      have begun since the last one

t counts decoding steps. `lean` is `bicache-dual` without its waste: the opening pass decodes, and no refresh falls
inside a block. It may let only anchor rows join, and skip a refresh while attention to the prefix is unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

NO_ROWS = range(0)


@dataclass(frozen=True)
class Geometry:
    """Gives the positions of one sequence: prefix 0..prefix-1, the rest of the prompt and the canvas up to total-1."""

    prefix: int
    total: int
    depth: int
    """Reuse depth b, 0..num_layers."""
    num_layers: int
    shift: int = 0
    """Rows to the left of a position at which its logits are read."""

    @property
    def everything(self) -> range:
        return range(self.total)

    @property
    def suffix(self) -> range:
        return range(self.prefix, self.total)

    @property
    def deep(self) -> range:
        """Return the prefix rows of a refresh; at full depth no row is recomputed."""
        return range(self.prefix) if self.depth < self.num_layers else NO_ROWS

    def rows_to_decode(self, block: range) -> range:
        """Return the rows that a pass over `block` alone computes: the block, and where its first logits are read."""
        return range(max(self.prefix, block.start - self.shift), block.stop)


@dataclass(frozen=True)
class Progress:
    """Describes a request's progress in denoising."""

    block: range
    """Positions of the active block."""
    index: int
    """Number of the active block."""
    step: int
    """Decoding steps done in it."""
    clock: int
    """Decoding steps over all blocks: t in the paper. The timetable gives it, unless confidence sets the pace."""
    last_block_clock: int
    """The clock when the block before this one began."""
    opened: bool
    """True if the block's opening pass, which decodes nothing, is done."""
    refresh_interval: int
    anchors: tuple[int, ...] | None = None
    """Prefix rows that a refresh recomputes in place of all; None before the first refresh, or without anchors."""
    drifted: bool = True
    """True if attention to the prefix was seen to change since the last refresh, or was not watched."""
    is_cold: bool = False
    """True if no pass has run since the sequence got its pages, so that no K/V can be reused."""

    @property
    def refresh_due(self) -> bool:
        return self.is_cold or self.clock % max(1, self.refresh_interval) == 0

    @property
    def refresh_due_since_last_block(self) -> bool:
        """Return whether a refresh fell due after the start of the block before this one."""
        interval = max(1, self.refresh_interval)
        return self.is_cold or self.index == 0 or self.clock // interval > self.last_block_clock // interval


@dataclass(frozen=True)
class Pass:
    """Describes one forward pass of one sequence."""

    rows: range
    """Rows that are computed in every layer."""
    deep: Sequence[int] = NO_ROWS
    """Prefix rows that join at the reuse depth, ascending."""
    decode: range = NO_ROWS
    """Masked positions among these are candidates for commitment; empty for a pass that only renews K/V."""

    @property
    def num_rows(self) -> int:
        return len(self.rows) + len(self.deep)

    @property
    def is_heavy(self) -> bool:
        """Return whether the pass recomputes the prefix or, without a prefix, all rows."""
        return bool(self.deep) or self.rows.start == 0


@dataclass(frozen=True)
class Policy:
    """Holds a schedule of passes under its name, with the properties that the rest of the engine needs."""

    name: str
    next_pass: Callable[[Geometry, Progress], Pass]
    reuses_prefix: bool = True
    keeps_kv: bool = True
    """True if a pass reads K/V that an earlier pass computed."""
    whole_canvas: bool = False
    """True if the policy decodes the canvas as one block, whatever the block length."""
    full_depth: bool = False
    """True if the policy reuses all layers, whatever the depth table says."""
    wide_confidence: bool = False
    """True if confidence is taken in float64 instead of the logits' dtype."""
    adaptive: bool = False
    """True if the policy supports anchors and skipped refreshes."""


def none(geometry: Geometry, progress: Progress) -> Pass:
    return Pass(rows=geometry.everything, decode=progress.block)


def dual(geometry: Geometry, progress: Progress) -> Pass:
    rows = geometry.everything if progress.step == 0 else geometry.rows_to_decode(progress.block)
    return Pass(rows=rows, decode=progress.block)


def bicache(geometry: Geometry, progress: Progress) -> Pass:
    deep = geometry.deep if progress.refresh_due else NO_ROWS
    return Pass(rows=geometry.suffix, deep=deep, decode=progress.block)


def bicache_dual(geometry: Geometry, progress: Progress) -> Pass:
    if not progress.opened:
        return Pass(rows=geometry.suffix, deep=geometry.deep if progress.refresh_due else NO_ROWS)
    inside = progress.refresh_due and progress.step > 0
    return Pass(
        rows=geometry.rows_to_decode(progress.block), deep=geometry.deep if inside else NO_ROWS, decode=progress.block
    )


def lean(geometry: Geometry, progress: Progress) -> Pass:
    if progress.step > 0:
        return Pass(rows=geometry.rows_to_decode(progress.block), decode=progress.block)
    deep: Sequence[int] = NO_ROWS
    if geometry.deep and progress.refresh_due_since_last_block and progress.drifted:
        deep = geometry.deep if progress.anchors is None else progress.anchors
    return Pass(rows=geometry.suffix, deep=deep, decode=progress.block)


POLICIES: Mapping[str, Policy] = MappingProxyType(
    {
        policy.name: policy
        for policy in (
            Policy("none", none, reuses_prefix=False, keeps_kv=False),
            Policy("prefix-naive", bicache, whole_canvas=True, full_depth=True),
            Policy("bicache", bicache, whole_canvas=True),
            Policy("dual", dual, reuses_prefix=False, wide_confidence=True),
            Policy("bicache-dual", bicache_dual),
            Policy("lean", lean, adaptive=True),
        )
    }
)
