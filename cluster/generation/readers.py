"""Turn workers' chunks into results for the caller: text in pieces, a whole answer, or a block's tokens.

A reader serves one attempt. As long as it has delivered nothing, a failed attempt can be repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

from cluster.errors import ReplicaLostError
from cluster.generation.detokenization import Detokenizer
from cluster.generation.events import Accepted, Answer, ContextChoice, Event, FilledBlock, Finished, Text
from cluster.generation.stops import StopStrings
from workers.api import FinishReason, GenerateChunk

T_co = TypeVar("T_co", covariant=True)


class Reader(Protocol[T_co]):
    """Turns the chunks of one attempt into results for the caller."""

    @property
    def has_enough(self) -> bool:
        """Return whether the remaining chunks aren't needed."""
        ...

    def read(self, chunk: GenerateChunk) -> Sequence[T_co]:
        """Take the next chunk, and return the results that can be delivered now."""
        ...

    def finish(self) -> T_co:
        """Return the last result. Raises ReplicaLostError if the last chunk is missing."""
        ...


class TextReader:
    """Delivers the acceptance, text as it is committed, up to the first stop string, and then how the answer ended."""

    def __init__(self, detokenizer: Detokenizer, stop: Sequence[str], context: ContextChoice | None) -> None:
        self._detokenizer, self._stops, self._context = detokenizer, StopStrings(stop), context
        self._finished: Finished | None = None

    @property
    def has_enough(self) -> bool:
        return self._stops.stopped

    def read(self, chunk: GenerateChunk) -> Sequence[Event]:
        if chunk.is_acceptance:
            return [Accepted()]
        text = self._stops.push(self._detokenizer.push(chunk.token_ids))
        if chunk.finish_reason is not None:
            text += self._stops.push(self._detokenizer.finish()) + self._stops.finish()
        reason = FinishReason.STOP if self._stops.stopped else chunk.finish_reason
        if reason is not None and chunk.usage is not None:
            self._finished = Finished(reason, chunk.usage, self._context)
        return [Text(text, chunk.usage)] if text else []

    def finish(self) -> Finished:
        if self._finished is None:
            raise incomplete_answer()
        return self._finished


class AnswerReader:
    """Delivers the whole answer at once."""

    def __init__(self, reader: TextReader) -> None:
        self._reader = reader
        self._texts: list[str] = []

    @property
    def has_enough(self) -> bool:
        return self._reader.has_enough

    def read(self, chunk: GenerateChunk) -> Sequence[Answer]:
        self._texts += [event.text for event in self._reader.read(chunk) if isinstance(event, Text)]
        return []

    def finish(self) -> Answer:
        return Answer("".join(self._texts), self._reader.finish())


class BlockReader:
    """Delivers the acceptance of the request, then the tokens of all holes at once."""

    has_enough = False

    def __init__(self) -> None:
        self._token_ids: tuple[int, ...] = ()
        self._block: FilledBlock | None = None

    def read(self, chunk: GenerateChunk) -> Sequence[Accepted | FilledBlock]:
        if chunk.is_acceptance:
            return [Accepted()]
        self._token_ids += chunk.token_ids
        if chunk.finish_reason is not None and chunk.usage is not None:
            self._block = FilledBlock(self._token_ids, chunk.usage)
        return []

    def finish(self) -> FilledBlock:
        if self._block is None:
            raise incomplete_answer()
        return self._block


def incomplete_answer() -> ReplicaLostError:
    return ReplicaLostError("the replica ended its answer without the last part")
