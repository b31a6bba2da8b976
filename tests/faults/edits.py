"""Make edits of every kind at random."""

from __future__ import annotations

import random

from cache_service.core.types import Edit

MAX_TOKENS = 12
NUM_TOKEN_IDS = 1000


def some_edits(rng: random.Random, length: int) -> list[Edit]:
    """Return one or two edits of a content of `length` tokens, which keep it between 1 and about `MAX_TOKENS`."""
    first = sorted(rng.randint(0, length) for _ in range(4))
    ranges = [(first[0], first[1]), (first[2], first[3])][: rng.choice([1, 1, 2])]
    edits = []
    for start, end in ranges:
        longest = 2 if length < MAX_TOKENS else 0
        num_tokens = rng.randint(0, longest)
        edits.append(_edit(rng, start, end, num_tokens))
    removed = sum(edit.end - edit.start for edit in edits)
    if length + sum(len(edit.token_ids) for edit in edits) == removed:
        edits[0] = _edit(rng, edits[0].start, edits[0].end, 1)
    return edits


def _edit(rng: random.Random, start: int, end: int, num_tokens: int) -> Edit:
    tokens = tuple(rng.randrange(NUM_TOKEN_IDS) for _ in range(num_tokens))
    return Edit(start, end, tokens, masked=rng.random() < 0.3)
