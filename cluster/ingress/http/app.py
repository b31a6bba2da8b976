"""The OpenAI-compatible HTTP API, as a FastAPI application."""

from __future__ import annotations

import json
import logging
import math
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, aclosing
from http import HTTPStatus
from itertools import takewhile
from typing import Annotated

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from grpc import StatusCode
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from sse_starlette import EventSourceResponse
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.body_limit import RequestBodyLimitMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from cluster.errors import ClusterError, ModelNotFoundError, NotReadyError, RequestError
from cluster.generation.answer import InferenceService
from cluster.generation.contexts.denoising import ContextDenoiser
from cluster.generation.events import Event, Text
from cluster.ingress.errors import INTERNAL, Reply, Status, reply_to
from cluster.ingress.http.contexts import context_routes
from cluster.ingress.http.schema.generation import ChatBody, CompletionBody, GenerationBody
from cluster.ingress.http.shapes import ChatShape, CompletionShape, Json, ResponseMeta, Shape
from cluster.ingress.keys import check_key
from workers.errors import WorkerError

logger = logging.getLogger(__name__)

REQUEST_ID_LENGTH = 64
NO_OBJECT = {"missing", "model_attributes_type", "model_type", "dict_type"}
"""What pydantic says of a body that is empty or no object."""
BEARER = HTTPBearer(auto_error=False)


def create_app(
    service: InferenceService,
    denoiser: ContextDenoiser,
    *,
    api_keys: frozenset[str],
    max_body_bytes: int,
    metrics: Callable[[], Awaitable[Collector]],
    lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]],
) -> FastAPI:
    """The application over `service`; without `api_keys` it is open. `metrics` gathers what /metrics shows."""
    app = FastAPI(title="Palimpsest", lifespan=lifespan)
    app.add_middleware(RequestBodyLimitMiddleware, max_body_size=max_body_bytes)
    app.add_middleware(DeclaredLengthMiddleware, max_body_size=max_body_bytes)
    created = int(time.time())

    async def authorized(credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(BEARER)]) -> None:
        check_key(credentials.credentials if credentials else None, api_keys)

    guarded = [Depends(authorized)]

    @app.post("/v1/chat/completions", dependencies=guarded)
    async def chat(body: ChatBody, request: Request) -> Response:
        return await respond(service, body, request, ChatShape, "chatcmpl")

    @app.post("/v1/completions", dependencies=guarded)
    @app.post("/v1/fim/completions", dependencies=guarded)
    async def completion(body: CompletionBody, request: Request) -> Response:
        return await respond(service, body, request, CompletionShape, "cmpl")

    app.include_router(context_routes(service, denoiser, explain, guarded))

    @app.get("/v1/models", dependencies=guarded)
    async def models() -> Json:
        return {"object": "list", "data": [await model(service.name)]}

    @app.get("/v1/models/{name:path}", dependencies=guarded)
    async def model(name: str) -> Json:
        if name != service.name:
            raise ModelNotFoundError(f"model {name!r} is not served here; this server has {service.name!r}")
        info = await service.model()
        return {
            "id": name,
            "object": "model",
            "created": created,
            "owned_by": "palimpsest",
            "context_length": info.context_length,
            "fingerprint": info.fingerprint,
        }

    @app.get("/health")
    async def health() -> Json:
        if not await service.ready():
            raise NotReadyError("no worker is ready")
        return {"status": "ok"}

    @app.get("/metrics")
    async def exposition(request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(await metrics()), media_type=content_type)

    for kind in (RequestValidationError, HTTPException, ClusterError, WorkerError, Exception):
        app.add_exception_handler(kind, refuse)
    return app


class DeclaredLengthMiddleware:
    """Refuses a body that says itself that it is too long; Starlette's own limit would answer that in plain text."""

    def __init__(self, app: ASGIApp, max_body_size: int) -> None:
        self._app = app
        self._max_body_size = max_body_size

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        declared = Headers(scope=scope).get("content-length", "0") if scope["type"] == "http" else "0"
        if declared.isdecimal() and int(declared) > self._max_body_size:
            too_large = HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
            response = await refuse(Request(scope, receive), too_large)
            await response(scope, receive, send)
        else:
            await self._app(scope, receive, send)


async def respond(
    service: InferenceService,
    body: GenerationBody,
    request: Request,
    shaped: Callable[[ResponseMeta], Shape],
    prefix: str,
) -> Response:
    """One generation, whole or as server-sent events. What goes wrong before the first event has its own status."""
    unique = uuid.uuid4().hex
    name = request.headers.get("x-request-id", "")[:REQUEST_ID_LENGTH]
    call = body.to_call(f"{name}-{unique}" if name else unique)
    shape = shaped(ResponseMeta(f"{prefix}-{unique}", int(time.time()), service.name))
    if not body.stream:
        return JSONResponse(shape.whole(await service.answer(call)))
    events = service.generate(call)
    first = await anext(events)
    stream: Response = EventSourceResponse(streamed(first, events, shape, include_usage=body.include_usage), sep="\n")
    return stream


async def streamed(
    first: Event, events: AsyncGenerator[Event, None], shape: Shape, *, include_usage: bool
) -> AsyncGenerator[str, None]:
    """The data of each server-sent event. An error after the first one can only be told as an event."""
    unknown = {"usage": None} if include_usage else {}
    for chunk in shape.opening():
        yield json.dumps(chunk | unknown)
    async with aclosing(events):
        try:
            event: Event = first
            while isinstance(event, Text):
                yield json.dumps(shape.piece(event.text) | unknown)
                event = await anext(events)
        except Exception as error:
            yield json.dumps(explain(error).body())
            return
    yield json.dumps(shape.closing(event) | unknown)
    if include_usage:
        yield json.dumps(shape.usage(event))
    yield "[DONE]"


async def refuse(_request: Request, error: Exception) -> Response:
    """Any error as OpenAI's error object."""
    reply = explain(error)
    headers = dict(getattr(error, "headers", None) or {})
    if reply.retry_after_s is not None:
        headers["Retry-After"] = str(math.ceil(reply.retry_after_s))
    if reply.status.http == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(reply.body(), reply.status.http, headers)


def explain(error: Exception) -> Reply:
    """What the client is told; what it isn't told is logged."""
    match error:
        case RequestValidationError():
            return reply_to(invalid(error))
        case HTTPException(status_code=code, detail=detail):
            phrase = HTTPStatus(code).phrase.lower().replace(" ", "_")
            if code == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
                detail = "the body is too long: send less, or raise limits.max_body_bytes"
            return Reply(Status(code, StatusCode.UNKNOWN, "invalid_request_error", phrase), str(detail), code=phrase)
    reply = reply_to(error)
    if reply.status is INTERNAL:
        logger.error("a request failed", exc_info=error)
    return reply


def invalid(error: RequestValidationError) -> RequestError:
    """What is wrong with a body, named by its path in the body: `messages.0.content`. Of several things the most deeply
    nested one, and no matter of types where there is another: where a field may be this or that, it is in the one that
    was meant.
    """
    first = max(error.errors(), key=lambda found: (len(found["loc"]), not found["type"].endswith("_type")))
    if first["loc"] == ("body",) and first["type"] in NO_OBJECT:
        return RequestError("the body must be a JSON object, sent with Content-Type: application/json")
    if first["type"] == "json_invalid":
        return RequestError(f"the body is no JSON: {first['ctx']['error']}")
    path = [str(part) for part in first["loc"][1:]]
    param = ".".join(takewhile(is_field, path)) or None
    reason = first["msg"].removeprefix("Value error, ")
    return RequestError(f"{param}: {reason}" if param else reason, param=param)


def is_field(part: str) -> bool:
    """Whether a part of an error's path is a field or an index, and not the name of a type that was tried."""
    return part.isdigit() or (part.isidentifier() and part not in {"str", "int"})
