"""A request once everything about it is settled, and its state while it runs."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import NewType

from cache_service.core.types import Epoch
from workers.api import ContextRead, DepthLimiter, PrefixCandidate
from workers.bicache.entry import PrefixEntry
from workers.decoding.canvas import Canvas
from workers.decoding.focus import Attention, Focus, FocusConfig
from workers.decoding.rules import Decoding
from workers.decoding.sampling import Generator, seeded_generator
from workers.decoding.timetable import Portion, Timetable
from workers.kv.page_table import SlotTable
from workers.scheduler.policy import Geometry, Moment, Pass, Policy

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
    cut: PrefixCandidate | None
    """The boundary at which the prompt is cut; None where the policy reuses no prefix, or there is none."""
    timetable: Timetable
    policy: Policy
    refresh_interval: int
    reuse_depth: int | None
    """Overrides the depth table."""
    deterministic: bool
    """Whether nothing that happens elsewhere lowers the reuse depth."""
    decoding: Decoding
    seed: int
    focus: FocusConfig
    context: ContextRead | None = None
    """Whose content the prompt begins with."""

    @property
    def total(self) -> int:
        return len(self.prompt) + self.num_canvas + len(self.suffix)

    @property
    def num_given(self) -> int:
        """Tokens that stay as they came."""
        return self.total - len(self.timetable.positions)

    @property
    def chooses_depth(self) -> bool:
        """Whether evidence may lower the depth; the published policies take the table at its word."""
        return self.policy.adaptive and self.reuse_depth is None

    @property
    def follows(self) -> bool:
        return self.context is not None and self.context.follows

    def new_canvas(self, *, mask_token_id: int, eos_token_id: int) -> Canvas:
        token_ids = self._token_ids(mask_token_id)
        return Canvas(self.timetable, token_ids, mask_token_id=mask_token_id, eos_token_id=eos_token_id)

    def moved_canvas(self, canvas: Canvas, *, mask_token_id: int) -> Canvas:
        """What was committed to `canvas`, amid this task's text."""
        return canvas.moved(self.timetable, self._token_ids(mask_token_id))

    def _token_ids(self, mask_token_id: int) -> tuple[int, ...]:
        return (*self.prompt, *[mask_token_id] * self.num_canvas, *self.suffix)

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
    slots: SlotTable
    """int64 [num_layers, total]: key rows of all positions."""
    limited_by: DepthLimiter | None = None
    """What lowered the reuse depth below the table's."""

    @property
    def built_for_it(self) -> bool:
        """Whether the model builds the entry because of this request; a copy takes no forward."""
        return self.entry is not None and not self.hit and not self.entry.copied


class Sequence:
    """One running request. `resources` holds its pages and its prefix entry; closing it frees both."""

    def __init__(self, task: Task, placing: Placing, canvas: Canvas, resources: ExitStack) -> None:
        self.task, self.placing, self.canvas = task, placing, canvas
        self.resources = resources
        self.block_index, self.step, self.opened = 0, 0, False
        self.last_block_clock, self.block_clock = 0, 0
        self.num_steps, self.num_forwards = 0, 0
        self.focus = Focus(task.focus)
        self.placed_anew = True
        """Whether no pass has run since it got its place."""
        self.epochs: list[Epoch] = []
        """Of its context, those that its passes went by."""
        self.asked, self.settled = False, False
        """In follow mode: whether the context's newest epoch was asked for at this block start, and is known."""
        self.last_served = -1
        """Engine step in which it last had a pass."""

    @property
    def id(self) -> RequestId:
        return self.task.id

    @cached_property
    def generator(self) -> Generator:
        """The only source of randomness for this request, so that results don't depend on the batch."""
        return seeded_generator(self.task.seed, self.placing.slots.device)

    @property
    def ready(self) -> bool:
        """Whether the epoch it goes by, if any, is settled."""
        return self.settled or not self.task.follows

    @property
    def block(self) -> range:
        """Positions from the first to the last of the active block."""
        return self.task.timetable.block(self.block_index)

    @property
    def moment(self) -> Moment:
        """Where it stands, in plain values: every schedule asks, also for passes that then have to wait."""
        return Moment(
            block=self.block,
            index=self.block_index,
            step=self.step,
            clock=self.block_clock + self.step,
            last_block_clock=self.last_block_clock,
            opened=self.opened,
            refresh_interval=self.task.refresh_interval,
            anchors=self.focus.anchors if self.step == 0 else None,
            drifted=self.step > 0 or self.focus.has_drifted,
            placed_anew=self.placed_anew,
        )

    def next_pass(self) -> Pass:
        return self.task.policy.next_pass(self.placing.geometry, self.moment)

    def portion(self) -> Portion:
        """What the next decoding step commits."""
        num_masked = len(self.canvas.masked(self.block))
        return self.task.timetable.portion(self.block_index, self.step, num_masked)

    @property
    def is_watched(self) -> bool:
        """Whether its next move depends on where its masked rows look in this pass: the first of a block, which may
        refresh, or the last, after which a refresh may be left out.
        """
        if not (self.focus.is_watched and self.placing.geometry.prefix > 0):
            return False
        is_last = self.portion().count >= len(self.canvas.masked(self.block))
        return self.step == 0 or is_last or self.task.decoding.unmasking.is_adaptive

    def advance(self, done: Pass, attention: Attention | None) -> None:
        """Move on after `done`, whose tokens are committed; a block ends once nothing in it is masked."""
        self.num_forwards += self.task.forwards_per_pass
        self._note_epoch()
        if self.step == 0 and not self.moment.drifted and self.moment.refresh_due_since_last_block:
            self.focus.skip()
        if attention is not None:
            self.focus.observe(attention, refreshed=bool(done.deep))
        self.placed_anew = False
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
            self.asked, self.settled = False, False

    def leave_place(self, task: Task, canvas: Canvas) -> None:
        """Give up pages and entry, to go on with `task` and `canvas` at the start of this block in another place."""
        self.num_forwards += self.placing.built_for_it
        self.resources.close()
        self.task, self.canvas = task, canvas

    def take_place(self, placing: Placing, resources: ExitStack) -> None:
        """Go on there; nothing that was kept counts any more, so that the next pass refreshes."""
        self.placing, self.resources = placing, resources
        self.focus, self.placed_anew = Focus(self.task.focus), True

    def _note_epoch(self) -> None:
        context = self.task.context
        if context is not None and self.epochs[-1:] != [context.at.epoch]:
            self.epochs.append(context.at.epoch)

    def remask(self) -> int:
        """Give tokens of the active block a second chance where the request asks for it; returns how many."""
        count = self.task.decoding.remask
        return self.canvas.remask(self.block, count) if count and self.step else 0

    def __repr__(self) -> str:
        return f"<Sequence {self.id} [block {self.block_index}, step {self.step} | {self.placing.geometry}]>"
