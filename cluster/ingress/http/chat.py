"""Define the routes `/v1/chat/completions`, `/v1/completions` and `/v1/fim/completions`."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from cluster.generation.answer import InferenceService
from cluster.ingress.access import note_request_id
from cluster.ingress.errors import at_paths
from cluster.ingress.http.bodies import BodyRoute
from cluster.ingress.http.schema.generation import ChatBody, CompletionBody, GenerationBody
from cluster.ingress.http.shapes import ChatShape, CompletionShape, ResponseMeta, Shape, StreamedAnswer
from cluster.ingress.http.sse import event_stream

REQUEST_ID_LENGTH = 64


def generation_routes(service: InferenceService, guards: Sequence[Any], keepalive_s: float) -> APIRouter:
    """Return the routes, each behind the dependencies `guards`. Streams have a comment every `keepalive_s`."""
    router = APIRouter(dependencies=list(guards), route_class=BodyRoute)

    @router.post("/v1/chat/completions")
    async def chat(body: ChatBody, request: Request) -> Response:
        return await respond(service, body, request, ChatShape, "chatcmpl", keepalive_s)

    @router.post("/v1/completions")
    @router.post("/v1/fim/completions")
    async def completion(body: CompletionBody, request: Request) -> Response:
        return await respond(service, body, request, CompletionShape, "cmpl", keepalive_s)

    return router


async def respond(
    service: InferenceService,
    body: GenerationBody,
    request: Request,
    shaped: Callable[[ResponseMeta], Shape],
    prefix: str,
    keepalive_s: float,
) -> Response:
    """Answer one request, whole or as server-sent events."""
    unique = uuid.uuid4().hex
    name = request.headers.get("x-request-id", "")[:REQUEST_ID_LENGTH]
    request_id = f"{name}-{unique}" if name else unique
    note_request_id(request_id)
    shape = shaped(ResponseMeta(f"{prefix}-{unique}", int(time.time()), service.catalogue.name))
    paths = body.paths()
    with at_paths(paths):
        call = body.to_call(request_id)
        if not body.stream:
            return JSONResponse(shape.full_response(await service.answer(call)))
        answer = StreamedAnswer(shape, body.usage_reports)
        return await event_stream(service.generate(call), answer, keepalive_s=keepalive_s, paths=paths)
