"""What a generation tells its client, whatever the transport."""

from __future__ import annotations

from dataclasses import dataclass

from cache_service.core.types import ContextId
from workers.api import ContextMode, FinishReason, Usage


@dataclass(frozen=True)
class ContextChoice:
    """The shared context that a request names as its prefix."""

    id: ContextId
    mode: ContextMode = ContextMode.PIN
    max_staleness: int = 0
    """Epochs that it may lie behind at a block start; what it begins with is always the newest."""


@dataclass(frozen=True)
class Text:
    """Committed text, in order and never empty."""

    text: str


@dataclass(frozen=True)
class Finished:
    """The last event of an answer."""

    reason: FinishReason
    usage: Usage
    context: ContextChoice | None = None
    """What the request named; `usage.epochs` says which of its epochs were read."""


Event = Text | Finished
