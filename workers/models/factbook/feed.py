"""Worker processes draw samples and send packed batches to the trainer."""

import multiprocessing as mp
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.queues import Queue
from random import Random
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from workers.models.factbook.branches import BRANCH, PackedBatch, Shape, pack
from workers.models.factbook.mixture import MixtureWriter
from workers.models.factbook.people import MAX_PEOPLE, MIN_PEOPLE, Split
from workers.models.factbook.samples import CANVAS, MAX_PREFIX, Sample, SampleWriter

Family = Literal["questions", "turns", "canvases"]
"""Families of batches: many questions about a sheet, turns of conversations, and canvases to the context's end."""

SHAPES: Mapping[Family, tuple[Shape, ...]] = {
    "questions": (Shape(256, BRANCH, 16), Shape(MAX_PREFIX, BRANCH, 16)),
    "turns": (Shape(768, 256, 2),),
    "canvases": (Shape(640, 1920, 1),),
}
"""Shapes of each family, the shortest prefix first."""
_OTHER_CANVAS_FRACTION = 0.15
_WHOLE_CONTEXT_FRACTION = 0.25


@dataclass(frozen=True)
class Blend:
    """A blend sets how often batches of each family come, and how large sheets are."""

    turns: float
    canvases: float
    max_people: int = MAX_PEOPLE

    def draw(self, rng: Random) -> Family:
        """Draw the family of the next batch."""
        families: tuple[Family, ...] = ("questions", "turns", "canvases")
        return rng.choices(families, (1 - self.turns - self.canvases, self.turns, self.canvases))[0]


def batch_rows(shape: Shape, tokens: int) -> int:
    """Return how many rows make a batch of about `tokens` token slots, a multiple of 4."""
    return max(4, tokens // shape.num_slots // 4 * 4)


def canvas_lens(rng: np.random.Generator, family: Family, shape: tuple[int, int]) -> NDArray[np.int64]:
    """Draw lengths of canvases, most of them CANVAS unless the family has canvases to the context's end."""
    if family == "canvases":
        logarithmic = np.exp2(rng.uniform(np.log2(2 * CANVAS), 11, shape)).astype(np.int64)
        return np.where(rng.random(shape) < _WHOLE_CONTEXT_FRACTION, 2048, logarithmic)
    longest = BRANCH if family == "questions" else 4 * CANVAS
    other = rng.random(shape) < _OTHER_CANVAS_FRACTION
    return np.where(other, rng.integers(12, longest, shape), CANVAS)


class BatchWriter:
    """Draws batches of the training split, one family after the other."""

    def __init__(self, tokenizer: Tokenizer, seed: int, tokens: int) -> None:
        samples = SampleWriter(tokenizer, seed, Split.TRAIN)
        self._mixture, self._eos, self._tokens = MixtureWriter(samples), samples.eos, tokens
        self._rng, self._np_rng = Random(seed), np.random.default_rng(seed)
        self._pending: dict[Shape, list[Sample]] = {}

    def draw(self, blend: Blend) -> PackedBatch:
        """Draw samples of one family until a batch of one of its shapes is full."""
        family = blend.draw(self._rng)
        while True:
            largest = SHAPES[family][-1]
            num_branches = largest.num_branches
            if family == "turns":
                num_branches = self._rng.randint(1, num_branches)  # a prefix row sees one question, as in serving
            max_people = max(MIN_PEOPLE, blend.max_people)
            sample = self._mixture.draw(num_branches, largest.branch_slots, largest.prefix_slots, max_people)
            shape = next(shape for shape in SHAPES[family] if len(sample.prefix) <= shape.prefix_slots)
            rows = self._pending.setdefault(shape, [])
            rows.append(sample)
            if len(rows) == batch_rows(shape, self._tokens):
                return self._pack(self._pending.pop(shape), family, shape)

    def _pack(self, rows: Sequence[Sample], family: Family, shape: Shape) -> PackedBatch:
        lens = canvas_lens(self._np_rng, family, (len(rows), shape.num_branches))
        return pack(rows, shape.prefix_slots, shape.num_branches, self._eos, lens, shape.branch_slots)


Message = tuple[int, tuple[NDArray[np.int16], ...]]
"""A message carries a batch's slots of a branch and its arrays."""


def _produce(
    queue: "Queue[Message]", blends: "Queue[Blend]", seed: int, tokens: int, blend: Blend, tokenizer_json: str
) -> None:
    torch.set_num_threads(1)
    writer = BatchWriter(Tokenizer.from_str(tokenizer_json), seed, tokens)
    while True:
        while not blends.empty():
            blend = blends.get()
        batch = writer.draw(blend)
        queue.put((batch.branch_slots, tuple(tensor.numpy() for tensor in batch.tensors)))


class Feed:
    """Starts the worker processes and returns their batches."""

    def __init__(self, tokenizer: Tokenizer, num_workers: int, tokens: int, seed: int, blend: Blend) -> None:
        context = mp.get_context("spawn")
        self._queue: Queue[Message] = context.Queue(maxsize=2 * num_workers)
        self._blends: list[Queue[Blend]] = [context.Queue() for _ in range(num_workers)]
        self._workers = [
            context.Process(
                target=_produce, args=(self._queue, blends, seed + i, tokens, blend, tokenizer.to_str()), daemon=True
            )
            for i, blends in enumerate(self._blends)
        ]
        for worker in self._workers:
            worker.start()

    def set_blend(self, blend: Blend) -> None:
        """Draw later batches by another blend; those already drawn still come."""
        for blends in self._blends:
            blends.put(blend)

    def next(self) -> PackedBatch:
        """Wait for the next batch and return it, on the CPU."""
        branch_slots, arrays = self._queue.get()
        return PackedBatch(*map(torch.from_numpy, arrays), branch_slots=branch_slots)

    def close(self) -> None:
        """End the worker processes."""
        for worker in self._workers:
            worker.terminate()
            worker.join()
