"""Keep the content of the shared contexts that a replica reads or rebuilds entries of. Pure.

The watch brings only the edits of contexts, so that a replica holds no content that it has no use for. What is kept
here follows those edits, and is forgotten where one is missing.
"""

from __future__ import annotations

from cache_service.core.contexts import apply_edits
from cache_service.core.events import Deleted, Edited, Event
from cache_service.core.types import Context, ContextId, Snapshot

MAX_TOKENS = 1_000_000
"""The most tokens that are kept: about 40 MB."""


class ContextContents:
    """Holds the contents that were used last, each at the newest epoch that is known here."""

    def __init__(self, max_tokens: int = MAX_TOKENS) -> None:
        self._max_tokens = max_tokens
        self._num_tokens = 0
        self._contexts: dict[ContextId, Context] = {}
        """In the order of their last use."""

    def find(self, context_id: ContextId) -> Context | None:
        """Return the content of a context if it is kept, and count that as a use."""
        context = self._contexts.pop(context_id, None)
        if context is not None:
            self._contexts[context_id] = context
        return context

    def put(self, context: Context) -> None:
        """Keep `context`, unless a newer epoch is kept, and drop those that were used least recently if need be."""
        known = self._contexts.get(context.id)
        if known is not None and known.epoch > context.epoch:
            return
        self.drop(context.id)
        self._contexts[context.id] = context
        self._num_tokens += len(context.token_ids)
        while self._num_tokens > self._max_tokens and len(self._contexts) > 1:
            self.drop(next(iter(self._contexts)))

    def drop(self, context_id: ContextId) -> None:
        context = self._contexts.pop(context_id, None)
        if context is not None:
            self._num_tokens -= len(context.token_ids)

    def take(self, update: Snapshot | Event) -> None:
        """Follow one update of the watch."""
        match update:
            case Snapshot(contexts=contexts):
                versions = {context.id: context.version for context in contexts}
                for context in tuple(self._contexts.values()):
                    if versions.get(context.id) != context.version:
                        self.drop(context.id)
            case Edited():
                self._follow(update)
            case Deleted(context_id=context_id):
                self.drop(context_id)
            case _:
                pass

    def _follow(self, edited: Edited) -> None:
        """Carry out an edit of the known epoch; an edit of a later one means that some are missing."""
        known = self._contexts.get(edited.context_id)
        if known is None or edited.version.epoch <= known.epoch:
            return
        self.drop(known.id)
        if edited.version.epoch == known.epoch + 1:
            self.put(apply_edits(known, edited.version, edited.edits, edited.lifetime))

    def __len__(self) -> int:
        return len(self._contexts)

    def __repr__(self) -> str:
        return f"<ContextContents [{len(self)} contexts, {self._num_tokens} tokens]>"
