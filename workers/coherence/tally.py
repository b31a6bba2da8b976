"""Count a replica's share in the cluster's work."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Tally:
    """Counts events since the start. One thread writes it; any thread may read it."""

    built: int = 0
    """Entries that the model computed here."""
    fetched: int = 0
    """Entries that were copied from other replicas for requests."""
    prewarmed: int = 0
    """Entries that were copied before any request asked for them."""
    sent: int = 0
    """Copies handed out."""
    sent_bytes: int = 0
    """Bytes of copies handed out."""
    fetched_bytes: Counter[str] = field(default_factory=Counter)
    """Bytes of all copies that arrived whole, by transport."""
    refused: Counter[str] = field(default_factory=Counter)
    """Fetches that gave no usable copy, by reason."""
    waits: Counter[str] = field(default_factory=Counter)
    """Waits for other replicas' builds, by outcome: the build ended, or the wait timed out."""
    fenced: int = 0
    """Builds whose lease had ended before they were complete."""
    drift_reports: int = 0
    """Depth limits found and reported here."""
    retired: int = 0
    """Entries dropped because their context has a new epoch."""
    task_errors: Counter[str] = field(default_factory=Counter)
    """Exceptions in tasks beside the engine, by task."""
