"""Describe a request with all its defaults resolved, and keep its state while it runs."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import NewType

from cache_service.core.types import Epoch, ReplicaId
from workers.api import ContextRead, DepthLimiter, PrefixCandidate, Usage
from workers.bicache.entry import PrefixEntry
from workers.decoding.canvas import Canvas
from workers.decoding.focus import Focus, FocusConfig, ObservedAttention
from workers.decoding.rules import Decoding
from workers.decoding.sampling import Generator, seeded_generator
from workers.decoding.timetable import Portion, Timetable
from workers.kv.page_table import SlotTable
from workers.scheduler.policy import Geometry, Pass, Policy, Progress

RequestId = NewType("RequestId", str)


@dataclass(frozen=True)
class Task:
    """Describes a validated request, with all defaults resolved."""

    id: RequestId
    prompt: tuple[int, ...]
    """The tokens before the canvas."""
    suffix: tuple[int, ...]
    """The tokens after the canvas."""
    num_canvas: int
    prefixes: tuple[PrefixCandidate, ...]
    """Usable boundaries, shortest first."""
    cut: PrefixCandidate | None
    """The boundary at which the prompt is cut; None if the policy reuses no prefix, or no boundary can be used."""
    timetable: Timetable
    policy: Policy
    refresh_interval: int
    reuse_depth: int | None
    """A depth that overrides the depth table."""
    deterministic: bool
    """True if the reuse depth ignores other replicas' reports."""
    decoding: Decoding
    seed: int
    focus: FocusConfig
    context: ContextRead | None = None
    """The shared context whose content the prompt begins with."""

    @property
    def total(self) -> int:
        return len(self.prompt) + self.num_canvas + len(self.suffix)

    @property
    def num_given(self) -> int:
        """Return the number of tokens that the client gave, which stay as they are."""
        return self.total - len(self.timetable.positions)

    @property
    def chooses_depth(self) -> bool:
        """Return whether evidence may lower the depth; the published policies use the table alone."""
        return self.policy.adaptive and self.reuse_depth is None

    @property
    def follows(self) -> bool:
        return self.context is not None and self.context.follows

    def new_canvas(self, *, mask_token_id: int, eos_token_id: int) -> Canvas:
        token_ids = self._token_ids(mask_token_id)
        return Canvas(self.timetable, token_ids, mask_token_id=mask_token_id, eos_token_id=eos_token_id)

    def relocated_canvas(self, canvas: Canvas, *, mask_token_id: int) -> Canvas:
        """Return a canvas with this task's text and the tokens committed to `canvas`."""
        return canvas.relocated(self.timetable, self._token_ids(mask_token_id))

    def _token_ids(self, mask_token_id: int) -> tuple[int, ...]:
        return (*self.prompt, *[mask_token_id] * self.num_canvas, *self.suffix)

    @property
    def forwards_per_pass(self) -> int:
        """Return the number of forwards in a pass: guidance needs a second one, without the prompt."""
        return 2 if self.decoding.is_guided else 1


@dataclass(frozen=True)
class Allocation:
    """Holds the result of admission: the cut, the reuse depth of the prefix, and the pages of the K/V."""

    geometry: Geometry
    entry: PrefixEntry | None
    """The entry that serves the prefix, held until the sequence ends."""
    is_hit: bool
    """True if the entry existed before this request."""
    slots: SlotTable
    """int64 [num_layers, total]: key rows of all positions."""
    limited_by: DepthLimiter | None = None
    """The evidence that lowered the reuse depth below the table's."""

    @property
    def is_built_for_it(self) -> bool:
        """Return whether the model built the entry because of this request; a copy needs no forward."""
        return self.entry is not None and not self.is_hit and not self.entry.is_copy


class RunningRequest:
    """Keeps the state of one running request. Closing `resources` frees its pages and its prefix entry."""

    def __init__(self, task: Task, allocation: Allocation, canvas: Canvas, resources: ExitStack) -> None:
        self.task, self.allocation, self.canvas = task, allocation, canvas
        self.resources = resources
        self.block_index, self.step, self.opened = 0, 0, False
        self.last_block_clock, self.block_clock = 0, 0
        self.num_steps, self.num_forwards = 0, 0
        self.focus = Focus(task.focus)
        self.is_cold = True
        """True if no pass has run since it got its pages."""
        self.epochs: list[Epoch] = []
        """The epochs of its context that its passes read."""
        self.has_asked, self.has_answer = False, False
        """In follow mode: whether the newest epoch was asked for at this block start, and whether it is known."""
        self.last_served: int | None = None
        """Engine step in which it last had a pass; None before its first one."""

    @property
    def id(self) -> RequestId:
        return self.task.id

    @cached_property
    def generator(self) -> Generator:
        """Return the only source of randomness for this request, so that results don't depend on the batch."""
        return seeded_generator(self.task.seed, self.allocation.slots.device)

    @property
    def is_ready(self) -> bool:
        """Return whether the request may have a pass. In follow mode it waits for its context's newest epoch."""
        return self.has_answer or not self.task.follows

    @property
    def is_waiting_for_epoch(self) -> bool:
        """Return whether the request still waits to learn the newest epoch of its context."""
        return self.has_asked and not self.has_answer

    @property
    def block(self) -> range:
        """Return the positions from the first to the last of the active block."""
        return self.task.timetable.block(self.block_index)

    @property
    def progress(self) -> Progress:
        """Return the request's progress as plain values, which the policies read."""
        return Progress(
            block=self.block,
            index=self.block_index,
            step=self.step,
            clock=self.block_clock + self.step,
            last_block_clock=self.last_block_clock,
            opened=self.opened,
            refresh_interval=self.task.refresh_interval,
            anchors=self.focus.anchors if self.step == 0 else None,
            drifted=self.step > 0 or self.focus.has_drifted,
            is_cold=self.is_cold,
        )

    def next_pass(self) -> Pass:
        return self.task.policy.next_pass(self.allocation.geometry, self.progress)

    def portion(self) -> Portion:
        """Return the portion of the masks that the next decoding step commits."""
        num_masked = len(self.canvas.masked(self.block))
        return self.task.timetable.portion(self.block_index, self.step, num_masked)

    @property
    def is_watched(self) -> bool:
        """Return whether the next pass must report the attention of its masked rows, which decides about a refresh.

        This holds for the first pass of a block, which may refresh, and the last, after which a refresh may be skipped.
        """
        if not (self.focus.is_watched and self.allocation.geometry.prefix > 0):
            return False
        is_last = self.portion().count >= len(self.canvas.masked(self.block))
        return self.step == 0 or is_last or self.task.decoding.unmasking.is_adaptive

    def usage(self, replica: ReplicaId) -> Usage:
        """Return the tokens and the work of the request so far."""
        allocation = self.allocation
        return Usage(
            prompt_tokens=self.task.num_given,
            completion_tokens=self.canvas.num_taken,
            cached_tokens=allocation.geometry.prefix if allocation.is_hit else 0,
            prefix_tokens=allocation.geometry.prefix,
            depth_limited_by=allocation.limited_by,
            num_steps=self.num_steps,
            num_forwards=self.num_forwards + allocation.is_built_for_it,
            policy=self.task.policy.name,
            reuse_depth=allocation.geometry.depth,
            replica=replica,
            epochs=tuple(self.epochs),
        )

    def advance(self, done: Pass, attention: ObservedAttention | None) -> None:
        """Advance by one step after `done`, whose tokens are committed; go to the next block if no mask is left."""
        self.num_forwards += self.task.forwards_per_pass
        self._note_epoch()
        if self.step == 0 and not self.progress.drifted and self.progress.refresh_due_since_last_block:
            self.focus.skip()
        if attention is not None:
            self.focus.observe(attention, refreshed=bool(done.deep))
        self.is_cold = False
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
            self.focus.choose_anchors(self.canvas.all_masked)
            self.has_asked, self.has_answer = False, False

    def suspend(self, task: Task, canvas: Canvas) -> None:
        """Free pages and entry, and replace task and canvas from the start of this block."""
        self.num_forwards += self.allocation.is_built_for_it
        self.resources.close()
        self.task, self.canvas = task, canvas

    def resume(self, allocation: Allocation, resources: ExitStack) -> None:
        """Continue with another allocation. It has none of the earlier K/V, so the next pass must refresh."""
        self.allocation, self.resources = allocation, resources
        self.focus, self.is_cold = Focus(self.task.focus), True

    def _note_epoch(self) -> None:
        context = self.task.context
        if context is not None and self.epochs[-1:] != [context.at.epoch]:
            self.epochs.append(context.at.epoch)

    def remask(self) -> int:
        """Mask some tokens of the active block again, if the request sets `remask`. Return their number."""
        count = self.task.decoding.remask
        return self.canvas.remask(self.block, count) if count and self.step else 0

    def __repr__(self) -> str:
        return f"<RunningRequest {self.id} [block {self.block_index}, step {self.step} | {self.allocation.geometry}]>"
