"""Encode text without blocking the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from cluster.generation.tokenization import Tokenizer
from workers.config import BiCacheConfig

T = TypeVar("T")

LONG_TEXT_LENGTH = 1 << 15
"""Minimum number of characters or token ids of a text whose encoding would block the event loop for too long."""


class TextEncoder:
    """Encodes short texts at once, and long ones one after the other on a thread.

    The thread has its own tokenizer, since a call may change settings of the one that it uses.
    """

    def __init__(self, directory: Path, *, cut_share: float = BiCacheConfig.cut_share) -> None:
        """Load the tokenizers. Raises TokenizerError. `cut_share` is the workers' `bicache.cut_share`."""
        self.tokenizer = Tokenizer(directory, cut_share=cut_share)
        """The tokenizer of the event loop."""
        self._for_long = Tokenizer(directory, cut_share=cut_share)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="long-texts")

    async def run(self, length: int, work: Callable[[Tokenizer], T]) -> T:
        """Run `work`, which encodes text of this length, and return its result. Raises what it raises."""
        if length < LONG_TEXT_LENGTH:
            return work(self.tokenizer)
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, self._for_long)
