"""Serve `palimpsest.contexts.v1.Contexts`."""
# ruff: noqa: N802 (method names are the protocol's)

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from cache_service.core.types import Context, ContextId, Epoch
from cluster.errors import RequestError
from cluster.generation.answer import InferenceService
from cluster.generation.contexts.changes import holes_of
from cluster.generation.contexts.denoising import BlockCommitted, ContextDenoiser, DenoiseCall, Denoised
from cluster.generation.contexts.editing import DEFAULT_PAGE, MAX_PAGE
from cluster.generation.events import Accepted
from cluster.ingress.errors import at_paths
from cluster.ingress.grpc.calls import guarded_call, params_from_pb, work_done
from cluster.ingress.grpc.content import changes_from_pb, content_from_pb
from protos import contexts_v1_pb2 as pb
from protos import contexts_v1_pb2_grpc as pb_grpc

CONTENT_PATHS = {"messages": "content.turns", "token_ids": "content.tokens"}
"""The requests' fields for what the service calls messages and token ids."""


class ContextsServicer(pb_grpc.ContextsServicer):
    """Serves the contexts of an `InferenceService`, and a `ContextDenoiser`."""

    def __init__(self, service: InferenceService, denoiser: ContextDenoiser, api_keys: frozenset[str]) -> None:
        self._service, self._contexts, self._denoiser = service, service.contexts, denoiser
        self._api_keys = api_keys

    async def Create(self, request: pb.CreateContextRequest, context: Any) -> pb.CreateContextResponse:
        async with guarded_call(context, self._api_keys) as tenant:
            content = content_from_pb(request.content)
            with at_paths(CONTENT_PATHS):
                made = await self._contexts.create(content, request.cache_salt, tenant, ttl_of(request))
            return pb.CreateContextResponse(context=self._full_context(made))

    async def Get(self, request: pb.GetContextRequest, context: Any) -> pb.GetContextResponse:
        async with guarded_call(context, self._api_keys):
            found = await self._contexts.read(ContextId(request.id), request.cache_salt)
            return pb.GetContextResponse(context=self._full_context(found))

    async def List(self, request: pb.ListContextsRequest, context: Any) -> pb.ListContextsResponse:
        async with guarded_call(context, self._api_keys):
            size = request.page_size or DEFAULT_PAGE
            if size > MAX_PAGE:
                raise RequestError(f"page_size must be at most {MAX_PAGE}, got {size}", param="page_size")
            page = await self._contexts.list_page(request.cache_salt, size, request.page_token or None)
            return pb.ListContextsResponse(
                contexts=map(context_header, page.contexts), next_page_token=page.next_page_token or ""
            )

    async def Change(self, request: pb.ChangeContextRequest, context: Any) -> pb.ChangeContextResponse:
        async with guarded_call(context, self._api_keys):
            name, salt, ttl_s = ContextId(request.id), request.cache_salt, ttl_of(request)
            expected = Epoch(request.expected_epoch) if request.HasField("expected_epoch") else None
            if ttl_s is not None and request.WhichOneof("change") is None:
                changed = await self._contexts.renew(name, salt, ttl_s, expected)
            elif expected is None:
                raise RequestError(
                    "expected_epoch is missing: give the epoch for which the change was made", param="expected_epoch"
                )
            else:
                changes = changes_from_pb(request)
                with at_paths(paths_of(request)):
                    changed = await self._contexts.change(name, salt, expected, changes, ttl_s)
            return pb.ChangeContextResponse(context=self._full_context(changed))

    async def Delete(self, request: pb.DeleteContextRequest, context: Any) -> pb.DeleteContextResponse:
        async with guarded_call(context, self._api_keys):
            await self._contexts.delete(ContextId(request.id), request.cache_salt)
            return pb.DeleteContextResponse()

    async def Denoise(self, request: pb.DenoiseRequest, context: Any) -> AsyncGenerator[pb.DenoiseResponse, None]:
        async with guarded_call(context, self._api_keys):
            self._service.catalogue.check(request.model)
            call = DenoiseCall(uuid.uuid4().hex, ContextId(request.id), request.cache_salt, params_from_pb(request))
            async with aclosing(self._denoiser.run(call, timeout_s=context.time_remaining())) as events:
                async for event in events:
                    match event:
                        case Accepted():
                            await context.send_initial_metadata(())
                        case BlockCommitted():
                            yield pb.DenoiseResponse(block=block(event))
                        case Denoised():
                            yield pb.DenoiseResponse(denoised=self._summary(event))

    def _full_context(self, context: Context) -> pb.Context:
        message = context_header(context)
        message.text = self._service.text_of(context.token_ids, special=True)
        message.token_ids.extend(context.token_ids)
        message.holes.extend(pb.TokenRange(start=hole.start, end=hole.end) for hole in holes_of(context))
        return message

    def _summary(self, event: Denoised) -> pb.Denoised:
        return pb.Denoised(
            context=self._full_context(event.context),
            lost_races=event.lost_races,
            diffusion=work_done(event.usage) if event.usage else None,
        )


def paths_of(request: pb.ChangeContextRequest) -> dict[str, str]:
    """Return where this request wrote what the service calls its content and its edits."""
    tokens = {f"edits.{index}.token_ids": f"edits.edits.{index}.tokens" for index in range(len(request.edits.edits))}
    return tokens | {"edits": "edits.edits"} | CONTENT_PATHS


def context_header(context: Context) -> pb.Context:
    """Return a context without its content."""
    versions = (context.version, *context.past)
    return pb.Context(
        id=context.id,
        epoch=context.epoch,
        versions=[pb.ContextVersion(epoch=version.epoch, key=version.key) for version in versions],
        expires_at=context.lifetime.expires_at if context.lifetime else None,
    )


def ttl_of(request: pb.CreateContextRequest | pb.ChangeContextRequest) -> float | None:
    return request.ttl_s if request.HasField("ttl_s") else None


def block(event: BlockCommitted) -> pb.CommittedBlock:
    return pb.CommittedBlock(epoch=event.context.epoch, positions=event.positions, text=event.text)
