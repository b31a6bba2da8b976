"""Keeps Python's cycle collector from walking all facts again and again.

Facts and events have no cycles: the last reference frees them. But the collector can't know that, and each of its full
passes walks every one of them, while all calls wait: tenths of a second where there are hundreds of thousands. So what
lives is put aside every few seconds (`gc.freeze`), and a pass sees only what came since. Cycles that were in use when
they were put aside are not found before the next whole pass, which is rare.
"""

from __future__ import annotations

import asyncio
import gc
from itertools import cycle

SETTLE_S = 5.0
WHOLE_EVERY = 360
"""A whole pass each half an hour."""


async def tend_heap() -> None:
    """Never returns; for a process that does nothing but serve, since the collector is the whole process's."""
    try:
        for turn in cycle(range(WHOLE_EVERY)):
            settle(whole=turn == 0)
            await asyncio.sleep(SETTLE_S)
    finally:
        gc.unfreeze()


def settle(*, whole: bool) -> None:
    """Free what lies in cycles, among the newer objects or among all; put aside what is left."""
    if whole:
        gc.unfreeze()
    gc.collect()
    gc.freeze()
