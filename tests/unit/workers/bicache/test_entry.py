"""The states of an entry, and their one writer."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

from workers.bicache import cache
from workers.bicache.entry import SUCCESSORS, EntryState, PrefixEntry

FIELDS = "|".join(field.name for field in fields(PrefixEntry))
WRITES = re.compile(
    rf"\bentry\.({FIELDS})(\[[^]]*\])?( [-+|&]?= |, .* = )|\bentry\.({FIELDS})\.(pop|update|clear|setdefault)\("
)


def test_every_state_leads_to_gone_and_none_leads_back() -> None:
    order = list(EntryState)
    assert set(SUCCESSORS) == set(order)
    assert all(order.index(later) > order.index(state) for state in order for later in SUCCESSORS[state])
    assert all(EntryState.GONE in SUCCESSORS[state] for state in order[:-1])


def test_the_cache_alone_writes_an_entrys_fields() -> None:
    writers = {
        path.name for path in Path(cache.__file__).parents[1].rglob("*.py") if WRITES.search(path.read_text("utf-8"))
    }
    assert writers == {"cache.py"}
