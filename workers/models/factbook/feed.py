"""Worker processes draw samples and send packed batches to the trainer."""

import multiprocessing as mp
from multiprocessing.queues import Queue
from multiprocessing.sharedctypes import Synchronized
from random import Random

import numpy as np
import torch
from tokenizers import Tokenizer

from workers.models.factbook.branches import BRANCH, PackedBatch, pack
from workers.models.factbook.people import MIN_PEOPLE, Split
from workers.models.factbook.samples import CANVAS, MAX_PREFIX, Sample, SampleWriter

PREFIX_SLOTS = (256, MAX_PREFIX)
NUM_BRANCHES = 16
SINGLE_SLOTS = 2  # one branch, and a slot of padding to fill the attention tile
_OTHER_CANVAS_FRACTION = 0.15


def batch_rows(prefix_slots: int, num_slots: int, tokens: int) -> int:
    """Return how many rows make a batch of about `tokens` token slots, a multiple of 4."""
    return max(4, tokens // (prefix_slots + BRANCH * num_slots) // 4 * 4)


def _canvas_lens(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    other = rng.random(shape) < _OTHER_CANVAS_FRACTION
    return np.where(other, rng.integers(12, BRANCH, shape), CANVAS)


def _produce(
    queue: "Queue[tuple[np.ndarray[tuple[int, ...], np.dtype[np.int16]], ...]]",
    seed: int,
    tokens: int,
    max_people: "Synchronized[float]",
    single_fraction: "Synchronized[float]",
    tokenizer_json: str,
) -> None:
    torch.set_num_threads(1)
    writer = SampleWriter(Tokenizer.from_str(tokenizer_json), seed, Split.TRAIN)
    rng, np_rng = Random(seed), np.random.default_rng(seed)
    pending: dict[tuple[int, int], list[Sample]] = {}
    single = False
    while True:
        sample = writer.draw(1 if single else NUM_BRANCHES, max(MIN_PEOPLE, round(max_people.value)))
        prefix_slots = next(slots for slots in PREFIX_SLOTS if len(sample.prefix) <= slots)
        shape = (prefix_slots, SINGLE_SLOTS if single else NUM_BRANCHES)
        rows = pending.setdefault(shape, [])
        rows.append(sample)
        if len(rows) < batch_rows(*shape, tokens):
            continue
        batch = pack(rows, *shape, writer.eos, _canvas_lens(np_rng, (len(rows), shape[1])))
        queue.put(tuple(getattr(batch, name).numpy() for name in PackedBatch.__dataclass_fields__))
        rows.clear()
        single = rng.random() < single_fraction.value


class Feed:
    """Starts the worker processes and returns their batches.

    `max_people` and `single_fraction` may be set at any time.
    """

    def __init__(self, tokenizer: Tokenizer, num_workers: int, tokens: int, seed: int) -> None:
        context = mp.get_context("spawn")
        self._queue = context.Queue(maxsize=2 * num_workers)
        self.max_people = context.Value("d", float(MIN_PEOPLE))
        self.single_fraction = context.Value("d", 0.0)
        shared = (tokens, self.max_people, self.single_fraction, tokenizer.to_str())
        self._workers = [
            context.Process(target=_produce, args=(self._queue, seed + i, *shared), daemon=True)
            for i in range(num_workers)
        ]
        for worker in self._workers:
            worker.start()

    def next(self) -> PackedBatch:
        """Wait for the next batch and return it, on the CPU."""
        return PackedBatch(*(torch.from_numpy(array) for array in self._queue.get()))

    @property
    def num_ready(self) -> int:
        """Return how many batches wait in the queue."""
        return self._queue.qsize()

    def close(self) -> None:
        """End the worker processes."""
        for worker in self._workers:
            worker.terminate()
            worker.join()
