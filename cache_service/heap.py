"""Keep Python's garbage collector from traversing all facts again and again.

Facts and events have no cycles: the last reference frees them. But the collector can't know that, and each of its full
passes traverses all of them while calls wait: tenths of a second for hundreds of thousands. So the live objects are
set aside every few seconds (`gc.freeze`), and a pass sees only newer ones. Cycles that were in use when they were set
aside are not found before the next whole pass, which is rare.
"""

from __future__ import annotations

import asyncio
import gc
from itertools import cycle

FREEZE_S = 5.0
FREEZES_PER_FULL_PASS = 360
"""Number of freezes between two whole passes: half an hour."""


async def freeze_periodically() -> None:
    """Freeze until cancelled, in a process that only serves: the collector belongs to the whole process."""
    try:
        for turn in cycle(range(FREEZES_PER_FULL_PASS)):
            collect_and_freeze(whole=turn == 0)
            await asyncio.sleep(FREEZE_S)
    finally:
        gc.unfreeze()


def collect_and_freeze(*, whole: bool) -> None:
    """Free the cycles, among the newer objects or among all of them, and set the rest aside."""
    if whole:
        gc.unfreeze()
    gc.collect()
    gc.freeze()
