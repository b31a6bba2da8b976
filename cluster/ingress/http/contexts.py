"""Define the routes below `/v1/contexts`."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse

from cache_service.core.types import Context, ContextId
from cluster.generation.answer import InferenceService
from cluster.generation.contexts.changes import holes_of
from cluster.generation.contexts.denoising import (
    BlockCommitted,
    ContextDenoiser,
    DenoiseCall,
    Denoised,
    DenoiseEvent,
)
from cluster.generation.contexts.editing import DEFAULT_PAGE, MAX_PAGE
from cluster.generation.events import Accepted
from cluster.ingress.http.bodies import BodyRoute
from cluster.ingress.http.schema.contexts import ChangeContextBody, CreateContextBody, DenoiseBody
from cluster.ingress.http.shapes import Json, work_done
from cluster.ingress.http.sse import event_stream

Salt = Annotated[str, Query(alias="cache_salt")]


def context_routes(
    service: InferenceService, denoiser: ContextDenoiser, guards: Sequence[Any], keepalive_s: float
) -> APIRouter:
    """Return the routes, each behind the dependencies `guards`, one of which sets `request.state.tenant`.

    Streams have a comment every `keepalive_s`.
    """
    router = APIRouter(prefix="/v1/contexts", dependencies=list(guards), route_class=BodyRoute)
    contexts = service.contexts

    def full_context(context: Context) -> Json:
        return context_header(context) | {
            "text": service.text_of(context.token_ids, special=True),
            "token_ids": list(context.token_ids),
            "holes": [asdict(hole) for hole in holes_of(context)],
        }

    @router.post("", status_code=201)
    async def create(request: Request, body: CreateContextBody) -> Json:
        salt, tenant = body.cache_salt or "", request.state.tenant
        return full_context(await contexts.create(body.to_content(), salt, tenant, body.ttl_s))

    @router.get("")
    async def page(
        limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = DEFAULT_PAGE, after: str | None = None, salt: Salt = ""
    ) -> Json:
        found = await contexts.list_page(salt, limit, after)
        return {
            "object": "list",
            "data": [context_header(context) for context in found.contexts],
            "next": found.next_page_token,
        }

    @router.get("/{context_id}")
    async def read(context_id: str, salt: Salt = "") -> Json:
        return full_context(await contexts.read(ContextId(context_id), salt))

    @router.patch("/{context_id}")
    async def change(context_id: str, body: ChangeContextBody) -> Json:
        name, salt, expected = ContextId(context_id), body.cache_salt or "", body.expected
        if (ttl_s := body.renewed_ttl_s) is not None:
            return full_context(await contexts.renew(name, salt, ttl_s, expected))
        if expected is None:
            raise AssertionError("the validation of the body requires the epoch of a change")
        return full_context(await contexts.change(name, salt, expected, body.to_changes(), body.ttl_s))

    @router.delete("/{context_id}")
    async def delete(context_id: str, salt: Salt = "") -> Json:
        await contexts.delete(ContextId(context_id), salt)
        return {"id": context_id, "object": "context", "deleted": True}

    @router.post("/{context_id}/denoise")
    async def denoise(context_id: str, body: DenoiseBody) -> Response:
        service.catalogue.check(body.model)
        call = DenoiseCall(uuid.uuid4().hex, ContextId(context_id), body.cache_salt or "", body.params())
        events = denoiser.run(call)
        if body.stream:
            return await event_stream(events, StreamedDenoising(full_context), keepalive_s=keepalive_s)
        blocks: list[Json] = []
        async with aclosing(events):
            async for event in events:
                match event:
                    case BlockCommitted():
                        blocks.append(block(event))
                    case Denoised():
                        return JSONResponse({**summary(event, full_context), "blocks": blocks})
        raise AssertionError("a denoising ends with Denoised or an error")

    return router


@dataclass(frozen=True)
class StreamedDenoising:
    """Makes the chunks of one denoising: its blocks, then its summary."""

    full_context: Callable[[Context], Json]

    def first_chunks(self) -> Sequence[Json]:
        return ()

    def chunks(self, event: DenoiseEvent) -> Sequence[Json]:
        match event:
            case Accepted():
                return ()
            case BlockCommitted():
                return [block(event)]
            case Denoised():
                return [summary(event, self.full_context)]


def context_header(context: Context) -> Json:
    """Return a context without its content, with its versions, the newest first."""
    versions = (context.version, *context.past)
    return {
        "id": context.id,
        "object": "context",
        "epoch": context.epoch,
        "versions": [{"epoch": version.epoch, "key": version.key.hex()} for version in versions],
        "expires_at": context.lifetime.expires_at if context.lifetime else None,
    }


def block(event: BlockCommitted) -> Json:
    return {
        "object": "context.block",
        "epoch": event.context.epoch,
        "positions": list(event.positions),
        "text": event.text,
    }


def summary(event: Denoised, full_context: Callable[[Context], Json]) -> Json:
    body = {"object": "context.denoised", "created": int(time.time()), "context": full_context(event.context)}
    return body | {"lost_races": event.lost_races, "diffusion": work_done(event.usage) if event.usage else None}
