"""Compute a checksum on the device that holds the bytes, so that a received copy isn't moved to the host for it.

It finds damage, not forgery. Each 8-byte word is keyed with its position and goes through a bijection of 64 bits, so a
change within one word is always found; the sum over all words misses any other change with probability 2^-64.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

WORD_BYTES = 8
CHUNK_WORDS = 1 << 18
"""Number of words per step, so that scratch memory stays small compared with the data."""
MIXED_BITS = 31
KEY, FIRST, SECOND = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15
"""Odd factors with no pattern in their bits, as signed 64-bit integers; products wrap around, as they should."""


def checksum(body: Tensor) -> int:
    """Return the checksum of uint8 [n], a signed 64-bit integer. It is the same on every device."""
    whole = body.numel() // WORD_BYTES * WORD_BYTES
    words, rest = body[:whole].view(torch.int64), body[whole:]
    total = torch.full((), body.numel(), dtype=torch.int64, device=body.device)
    for start in range(0, len(words), CHUNK_WORDS):
        total += mixed_sum(words[start : start + CHUNK_WORDS], start)
    if len(rest):
        total += mixed_sum(pad(rest, (0, WORD_BYTES - len(rest))).view(torch.int64), len(words))
    return int(total)


def mixed_sum(words: Tensor, start: int) -> Tensor:
    """Return the sum over int64 words [n], of which the first is at position `start` of them all."""
    positions = torch.arange(start + 1, start + 1 + len(words), dtype=torch.int64, device=words.device)
    keyed = words ^ positions.mul_(KEY)
    for factor in (FIRST, SECOND):
        keyed ^= upper_bits(keyed)
        keyed *= factor
    return (keyed ^ upper_bits(keyed)).sum()


def upper_bits(words: Tensor) -> Tensor:
    """Return the upper bits of each word. A plain shift would bring in the sign, and lose a bit."""
    return (words >> MIXED_BITS) & ((1 << (64 - MIXED_BITS)) - 1)
