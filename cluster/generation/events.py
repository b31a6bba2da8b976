"""Define the events that a generation delivers to its client, over either transport."""

from __future__ import annotations

from dataclasses import dataclass, field

from cache_service.core.types import ContextId
from workers.api import ContextMode, FinishReason, Usage


@dataclass(frozen=True)
class ContextChoice:
    """Identifies the shared context that is a request's prefix."""

    id: ContextId
    mode: ContextMode = ContextMode.PIN
    max_staleness: int = 0
    """Maximum age in epochs of the request's content at a block start; a request always begins with the newest."""


@dataclass(frozen=True)
class Accepted:
    """Reports, before any part of the answer, that a replica has put the request into its queue."""


@dataclass(frozen=True)
class Text:
    """Delivers committed text, in order and never empty."""

    text: str
    usage: Usage | None = field(default=None, compare=False)
    """The usage so far."""


@dataclass(frozen=True)
class Finished:
    """Reports the end of an answer, with its reason and usage."""

    reason: FinishReason
    usage: Usage
    context: ContextChoice | None = None
    """The context that the request named; `usage.epochs` has the epochs that were read."""


Event = Accepted | Text | Finished


@dataclass(frozen=True)
class Answer:
    """Holds all events of one generation in one value."""

    text: str
    finished: Finished


@dataclass(frozen=True)
class FilledBlock:
    """Holds the tokens of a request's holes, in order, and the usage of the request."""

    token_ids: tuple[int, ...]
    usage: Usage
