"""A request once everything about it is settled, and its state while it runs."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import NewType

import torch
from torch import Tensor

from workers.api import PrefixCandidate
from workers.bicache.cache import PrefixEntry
from workers.scheduler.canvas import Canvas
from workers.scheduler.decoding import Decoding
from workers.scheduler.focus import Attention, Focus, FocusConfig
from workers.scheduler.policy import Geometry, Moment, Pass, Policy
from workers.scheduler.timetable import Portion, Timetable

RequestId = NewType("RequestId", str)


@dataclass(frozen=True)
class Task:
    """A validated request: no default is open any more."""

    id: RequestId
    prompt: tuple[int, ...]
    """Before the canvas."""
    suffix: tuple[int, ...]
    """Behind the canvas."""
    num_canvas: int
    prefixes: tuple[PrefixCandidate, ...]
    """Usable boundaries, shortest first."""
    timetable: Timetable
    policy: Policy
    refresh_interval: int
    reuse_depth: int | None
    """Overrides the depth table."""
    decoding: Decoding
    seed: int
    focus: FocusConfig

    @property
    def total(self) -> int:
        return len(self.prompt) + self.num_canvas + len(self.suffix)

    @property
    def num_given(self) -> int:
        """Tokens that stay as they came."""
        return self.total - len(self.timetable.positions)

    def new_canvas(self, *, mask_token_id: int, eos_token_id: int) -> Canvas:
        token_ids = (*self.prompt, *[mask_token_id] * self.num_canvas, *self.suffix)
        return Canvas(self.timetable, token_ids, mask_token_id=mask_token_id, eos_token_id=eos_token_id)

    @property
    def forwards_per_pass(self) -> int:
        """Guidance runs the model a second time, without the prompt."""
        return 2 if self.decoding.is_guided else 1


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

    def __init__(self, task: Task, placing: Placing, canvas: Canvas, resources: ExitStack) -> None:
        self.task, self.placing, self.canvas = task, placing, canvas
        self.resources = resources
        self.block_index, self.step, self.opened = 0, 0, False
        self.last_block_clock, self.block_clock = 0, 0
        self.num_steps, self.num_forwards = 0, 0
        self.focus = Focus(task.focus)
        self.last_served = -1
        """Engine step in which it last had a pass."""

    @property
    def id(self) -> RequestId:
        return self.task.id

    @cached_property
    def generator(self) -> torch.Generator:
        """The only source of randomness for this request, so that results don't depend on the batch."""
        return torch.Generator(self.placing.slots.device).manual_seed(self.task.seed)

    @property
    def ready(self) -> bool:
        """Whether the entry it reads, if any, is built."""
        return self.placing.entry is None or self.placing.entry.built

    @property
    def block(self) -> range:
        """Positions from the first to the last of the active block."""
        return self.task.timetable.block(self.block_index)

    @property
    def moment(self) -> Moment:
        return Moment(
            block=self.block,
            index=self.block_index,
            step=self.step,
            clock=self.block_clock + self.step,
            last_block_clock=self.last_block_clock,
            opened=self.opened,
            refresh_interval=self.task.refresh_interval,
            anchors=self.focus.anchors(self.canvas.all_masked) if self.step == 0 else None,
            drifted=self.step > 0 or self.focus.drifted,
        )

    def next_pass(self) -> Pass:
        return self.task.policy.next_pass(self.placing.geometry, self.moment)

    def portion(self) -> Portion:
        """What the next decoding step commits."""
        num_masked = len(self.canvas.masked(self.block))
        return self.task.timetable.portion(self.block_index, self.step, num_masked)

    @property
    def is_watched(self) -> bool:
        """Whether its next move depends on where its masked rows look."""
        return self.focus.is_watched and self.placing.geometry.prefix > 0

    def advance(self, done: Pass, attention: Attention | None) -> None:
        """Move on after `done`, whose tokens are committed; a block ends once nothing in it is masked."""
        self.num_forwards += self.task.forwards_per_pass
        if self.step == 0 and not self.moment.drifted and self.moment.refresh_due_since_last_block:
            self.focus.skip()
        if attention is not None:
            self.focus.observe(attention, refreshed=bool(done.deep))
        if not done.decode:
            self.opened = True
            return
        self.num_steps += 1
        self.step += 1
        if not self.canvas.masked(self.block):
            is_adaptive = self.task.decoding.unmasking.is_adaptive
            num_steps = self.step if is_adaptive else self.task.timetable.steps_per_block
            self.last_block_clock, self.block_clock = self.block_clock, self.block_clock + num_steps
            self.block_index, self.step, self.opened = self.block_index + 1, 0, False

    def remask(self) -> int:
        """Give tokens of the active block a second chance where the request asks for it; returns how many."""
        count = self.task.decoding.remask
        return self.canvas.remask(self.block, count) if count and self.step else 0

    def __repr__(self) -> str:
        return f"<Sequence {self.id} [block {self.block_index}, step {self.step} | {self.placing.geometry}]>"
