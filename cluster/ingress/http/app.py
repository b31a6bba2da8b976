"""Create the OpenAI-compatible HTTP API as a FastAPI application."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from http import HTTPStatus
from typing import Annotated

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.body_limit import RequestBodyLimitMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from cluster.errors import ClusterError, ModelNotFoundError
from cluster.generation.answer import InferenceService
from cluster.generation.contexts.denoising import ContextDenoiser
from cluster.ingress.http.chat import generation_routes
from cluster.ingress.http.contexts import context_routes
from cluster.ingress.http.errors import refuse
from cluster.ingress.http.shapes import Json
from cluster.ingress.keys import check_key
from workers.errors import WorkerError

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
    """Return the application that serves `service`; `metrics` gathers the metrics for /metrics.

    Without `api_keys` no key is required.
    """
    app = FastAPI(title="Palimpsest", lifespan=lifespan)
    app.add_middleware(RequestBodyLimitMiddleware, max_body_size=max_body_bytes)
    app.add_middleware(DeclaredLengthMiddleware, max_body_size=max_body_bytes)
    created = int(time.time())

    async def authorized(
        request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(BEARER)]
    ) -> None:
        request.state.tenant = check_key(credentials.credentials if credentials else None, api_keys)

    guards = [Depends(authorized)]
    catalogue = service.catalogue
    app.include_router(generation_routes(service, guards))
    app.include_router(context_routes(service, denoiser, guards))

    @app.get("/v1/models", dependencies=guards)
    async def models() -> Json:
        return {"object": "list", "data": [await model(catalogue.name)]}

    @app.get("/v1/models/{name:path}", dependencies=guards)
    async def model(name: str) -> Json:
        if name != catalogue.name:
            raise ModelNotFoundError(f"model {name!r} is not served here; this server has {catalogue.name!r}")
        info = await catalogue.model()
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
        await service.check_health()
        return {"status": "ok"}

    @app.get("/metrics")
    async def exposition(request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(await metrics()), media_type=content_type)

    for kind in (RequestValidationError, HTTPException, ClusterError, WorkerError, Exception):
        app.add_exception_handler(kind, refuse)
    return app


class DeclaredLengthMiddleware:
    """Refuses a body whose declared length is too long; Starlette's own limit would answer that in plain text."""

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
