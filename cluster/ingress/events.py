"""What a generation tells its client, whatever the transport."""

from __future__ import annotations

from dataclasses import dataclass

from workers.api import FinishReason, Usage


@dataclass(frozen=True)
class Text:
    """Committed text, in order and never empty."""

    text: str


@dataclass(frozen=True)
class Finished:
    """The last event of an answer."""

    reason: FinishReason
    usage: Usage


Event = Text | Finished
