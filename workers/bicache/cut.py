"""Decide where a prompt is cut into a reusable prefix and the rest. Pure: the request alone decides."""

from __future__ import annotations

from collections.abc import Sequence

from workers.api import PrefixCandidate


def choose_cut(candidates: Sequence[PrefixCandidate], share: float) -> PrefixCandidate | None:
    """Return the boundary at `cut_length` of a request's `candidates`; None if there are none."""
    length = cut_length([candidate.num_tokens for candidate in candidates], share)
    return next((candidate for candidate in candidates if candidate.num_tokens == length), None)


def cut_length(lengths: Sequence[int], share: float) -> int:
    """Return the shortest of the ascending `lengths` that covers `share` of the longest; 0 if there are none.

    A request's longest boundary moves with every turn of its conversation. The shortest one that still covers enough
    of it stays where it is for several turns, and is the same in other conversations that begin alike, so that they
    find each other's entries.
    """
    return next((length for length in lengths if length >= share * lengths[-1]), 0)
