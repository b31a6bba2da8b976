"""Contexts, and requests that read them."""

from __future__ import annotations

from dataclasses import replace

from cache_service.core.hashing import prefix_keys
from cache_service.core.types import Context, ContextId, EditId, Epoch, Revision, Version
from tests.unit.workers.tiny import prompt_of, request_of
from workers.api import ContextEpoch, ContextMode, ContextRead, GenerateRequest

TAIL = prompt_of(5, seed=99)
BLOCK = 4


def content(epoch: int, token_ids: tuple[int, ...]) -> Context:
    (key,) = prefix_keys("tiny", "", token_ids, [len(token_ids)])
    version = Version(Epoch(epoch), key, EditId(f"c{epoch}"))
    return Context(ContextId("ctx-1"), "tiny", "", token_ids, (), Revision(1), EditId("c0"), version)


def reading(
    context: Context,
    num_blocks: int,
    *,
    mode: ContextMode = ContextMode.FOLLOW,
    max_staleness: int = 0,
    written: tuple[int, ...] = (),
    **params: object,
) -> GenerateRequest:
    """`written` are committed tokens that a restarted request takes over into its prompt."""
    prompt = context.token_ids + TAIL + written
    params = {"policy": "none", "block_length": BLOCK, "num_steps": num_blocks * BLOCK} | params
    read = ContextRead(ContextEpoch(context.id, context.epoch), len(context.token_ids), mode, max_staleness)
    request = request_of(prompt, num_blocks * BLOCK, prefixes=[len(context.token_ids)], **params)
    return replace(request, context=read)
