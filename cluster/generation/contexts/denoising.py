"""Denoise a shared context: its holes are filled a block at a time, and every block is a commit.

    read epoch e --> denoise the next block's holes --> commit(expected e) --accepted--> e + 1, go on there
         ^                                                  |
         +------------- another commit was faster: what it filled stays, the rest is denoised again

So a block is always computed from the content to which it is committed, and concurrent denoisers take turns.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Protocol

from cache_service.core.types import Context, ContextId, Edit
from cluster.errors import ContextConflictError, RequestError
from cluster.generation.admission import Admission
from cluster.generation.contexts.editing import ContextService
from cluster.generation.events import Accepted, FilledBlock
from cluster.metrics import IngressMetrics
from workers.api import SEED_BITS, DecodingParams, FinishReason, GenerateRequest, Usage

SEEDS = 1 << SEED_BITS


@dataclass(frozen=True)
class DenoiseCall:
    """Describes a client's call to denoise a context."""

    request_id: str
    """Unique over all requests."""
    context: ContextId
    cache_salt: str
    params: DecodingParams
    """Parameters of all blocks: they share `num_steps`, and each has a seed of its own, counted up from `seed`."""


@dataclass(frozen=True)
class BlockCommitted:
    """Reports that one block is filled."""

    context: Context
    """The context as the commit left it."""
    positions: tuple[int, ...]
    text: str


@dataclass(frozen=True)
class Denoised:
    """Reports, as the last event, that no mask is left."""

    context: Context
    num_blocks: int
    lost_races: int
    """Blocks that were discarded because another commit was faster."""
    usage: Usage | None
    """The last block's usage, with the steps, forwards and tokens of all; None if the context had no hole."""


DenoiseEvent = Accepted | BlockCommitted | Denoised


class DenoisingService(Protocol):
    """Declares the part of the inference service that the denoiser needs."""

    contexts: ContextService
    admission: Admission

    def fill(self, request: GenerateRequest, deadline: float) -> AsyncGenerator[Accepted | FilledBlock, None]: ...

    def deadline(self, timeout_s: float | None) -> float: ...

    def text_within(self, token_ids: Sequence[int], positions: Sequence[int]) -> str: ...


class ContextDenoiser:
    """Denoises contexts through the workers."""

    def __init__(self, service: DenoisingService, metrics: IngressMetrics, block_length: int) -> None:
        """Denoise through `service`; a request that names no block length has `block_length`."""
        self._service, self._metrics, self._block_length = service, metrics, block_length

    async def run(self, call: DenoiseCall, *, timeout_s: float | None = None) -> AsyncGenerator[DenoiseEvent, None]:
        """Yield an Accepted if there is a hole, a BlockCommitted for every block, then one Denoised.

        What is committed stays, however this ends. Closing the generator, or passing the deadline, stops the work.
        Raises what `InferenceService.generate` and `ContextService` raise.
        """
        deadline = self._service.deadline(timeout_s)
        with self._service.admission.admit(self._metrics.request()) as observed:
            contexts = self._service.contexts
            context = await contexts.read_to_generate(call.context, call.cache_salt)
            length = call.params.block_length or self._block_length
            params = replace(call.params, block_length=length, num_steps=steps_per_block(call.params, context, length))
            num_blocks, lost_races, usages = 0, 0, list[Usage]()
            while context.masked:
                positions = context.masked[:length]
                number = num_blocks + lost_races
                request = GenerateRequest(
                    f"{call.request_id}-{number}",
                    context.token_ids,
                    max_tokens=0,
                    params=params_of_block(params, number),
                    holes=positions,
                )
                async with aclosing(self._service.fill(request, deadline)) as events:
                    async for event in events:
                        if isinstance(event, FilledBlock):
                            filled = event
                        elif not usages:
                            yield event
                usages.append(filled.usage)
                try:
                    context = await contexts.commit(context, edits_of(positions, filled.token_ids))
                except ContextConflictError:
                    lost_races += 1
                    context = await contexts.read_to_generate(call.context, call.cache_salt)
                else:
                    num_blocks += 1
                    yield BlockCommitted(context, positions, self._service.text_within(context.token_ids, positions))
            observed.outcome = FinishReason.STOP.value
            yield Denoised(context, num_blocks, lost_races, total_usage(usages))


def steps_per_block(params: DecodingParams, context: Context, block_length: int) -> int | None:
    """Return the number of steps of one block. Raises RequestError if there are fewer steps than blocks."""
    if params.num_steps is None or not context.masked:
        return None
    num_blocks = -(-len(context.masked) // block_length)
    if params.num_steps < num_blocks:
        raise RequestError(
            f"diffusion.steps must be at least 1 for each of the {num_blocks} blocks, got {params.num_steps}; "
            "raise it, or raise diffusion.block_length",
            param="diffusion.steps",
        )
    return params.num_steps // num_blocks


def params_of_block(params: DecodingParams, number: int) -> DecodingParams:
    """Return the parameters of block `number`, which has a seed of its own."""
    return params if params.seed is None else replace(params, seed=(params.seed + number) % SEEDS)


def edits_of(positions: Sequence[int], token_ids: Sequence[int]) -> tuple[Edit, ...]:
    """Return one edit for every contiguous run of the ascending positions."""
    edits: list[Edit] = []
    for position, token_id in zip(positions, token_ids, strict=True):
        if edits and edits[-1].end == position:
            edits[-1] = Edit(edits[-1].start, position + 1, (*edits[-1].token_ids, token_id))
        else:
            edits.append(Edit(position, position + 1, (token_id,)))
    return tuple(edits)


def total_usage(usages: Sequence[Usage]) -> Usage | None:
    """Return the sum of the blocks' usage; discarded blocks count too, since they were computed."""
    if not usages:
        return None
    return replace(
        usages[-1],
        completion_tokens=sum(usage.completion_tokens for usage in usages),
        num_steps=sum(usage.num_steps for usage in usages),
        num_forwards=sum(usage.num_forwards for usage in usages),
    )
