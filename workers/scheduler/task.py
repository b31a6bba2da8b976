"""A request once everything about it is settled, and its state while it runs."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import NewType

import torch
from torch import Tensor

from workers.api import PrefixCandidate
from workers.bicache.cache import PrefixEntry
from workers.scheduler.canvas import Canvas, Timetable
from workers.scheduler.focus import Attention, Focus, FocusConfig
from workers.scheduler.policy import Geometry, Moment, Pass, Policy

RequestId = NewType("RequestId", str)


@dataclass(frozen=True)
class Task:
    """A validated request: no default is open any more."""

    id: RequestId
    prompt: tuple[int, ...]
    prefixes: tuple[PrefixCandidate, ...]
    """Usable boundaries, shortest first."""
    timetable: Timetable
    policy: Policy
    refresh_interval: int
    reuse_depth: int | None
    """Overrides the depth table."""
    temperature: float
    seed: int
    focus: FocusConfig

    @property
    def total(self) -> int:
        return len(self.prompt) + self.timetable.length


@dataclass(frozen=True)
class Placing:
    """What admission decided: where the sequence is cut, how deep its prefix is reused, and where its K/V lie."""

    geometry: Geometry
    entry: PrefixEntry | None
    """Held until the sequence ends."""
    hit: bool
    """Whether the entry was there before this request."""
    slots: Tensor
    """int64 [num_layers, total]: key rows of all positions."""


class Sequence:
    """One running request. `resources` holds its pages and its prefix entry; closing it frees both."""

    def __init__(
        self, task: Task, placing: Placing, canvas: Canvas, generator: torch.Generator, resources: ExitStack
    ) -> None:
        self.task, self.placing, self.canvas = task, placing, canvas
        self.generator = generator
        """The only source of randomness for this request, so that results don't depend on the batch."""
        self.resources = resources
        self.block_index, self.step, self.opened = 0, 0, False
        self.num_steps, self.num_forwards = 0, 0
        self.focus = Focus(task.focus)
        self.last_served = -1
        """Engine step in which it last had a pass."""

    @property
    def id(self) -> RequestId:
        return self.task.id

    @property
    def ready(self) -> bool:
        """Whether the entry it reads, if any, is built."""
        return self.placing.entry is None or self.placing.entry.built

    @property
    def moment(self) -> Moment:
        timetable = self.task.timetable
        return Moment(
            block=timetable.block(self.block_index),
            index=self.block_index,
            step=self.step,
            steps_per_block=timetable.steps_per_block,
            opened=self.opened,
            refresh_interval=self.task.refresh_interval,
            anchors=self.focus.anchors(self.canvas.all_masked) if self.step == 0 else None,
            drifted=self.step > 0 or self.focus.drifted,
        )

    def next_pass(self) -> Pass:
        return self.task.policy.next_pass(self.placing.geometry, self.moment)

    def quota(self) -> int:
        return self.task.timetable.quota(self.block_index, self.step)

    @property
    def is_watched(self) -> bool:
        """Whether its next move depends on where its masked rows look."""
        return self.focus.is_watched and self.placing.geometry.prefix > 0

    def advance(self, done: Pass, attention: Attention | None) -> None:
        """Move on after `done`, whose tokens are committed; a block ends once nothing in it is masked."""
        self.num_forwards += 1
        if self.step == 0 and not self.moment.drifted and self.moment.refresh_due_since_last_block:
            self.focus.skip()
        if attention is not None:
            self.focus.observe(attention, refreshed=bool(done.deep))
        if not done.decode:
            self.opened = True
            return
        self.num_steps += 1
        self.step += 1
        if not self.canvas.masked(self.task.timetable.block(self.block_index)):
            self.block_index, self.step, self.opened = self.block_index + 1, 0, False

    def __repr__(self) -> str:
        return f"<Sequence {self.id} [block {self.block_index}, step {self.step} | {self.placing.geometry}]>"
