"""Create the OpenAI-compatible HTTP API as a FastAPI application."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from http import HTTPStatus
from importlib.metadata import PackageNotFoundError, version

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.body_limit import RequestBodyLimitMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from cluster.errors import ClusterError, ModelNotFoundError
from cluster.generation.answer import InferenceService
from cluster.generation.contexts.denoising import ContextDenoiser
from cluster.ingress.access import AccessLog
from cluster.ingress.http.access import AccessMiddleware
from cluster.ingress.http.chat import generation_routes
from cluster.ingress.http.contexts import context_routes
from cluster.ingress.http.errors import SHOULD_RETRY, refuse
from cluster.ingress.http.shapes import Json
from cluster.ingress.keys import check_keys, keys_of
from workers.errors import WorkerError

WITHOUT_SERVICE = (
    "requests are answered without it, but shared contexts and copies of cached prefixes are not available"
)
BEARER = HTTPBearer(auto_error=False)
"""Describes the API key in the OpenAPI document; `keys_of` reads it."""

CORS_METHODS = ("GET", "POST", "PATCH", "DELETE")
CORS_EXPOSED = ("x-request-id", "retry-after", SHOULD_RETRY)
"""The headers of answers that a page's script may read."""


def create_app(
    service: InferenceService,
    denoiser: ContextDenoiser,
    *,
    api_keys: frozenset[str],
    max_body_bytes: int,
    keepalive_s: float,
    metrics: Callable[[], Awaitable[Collector]],
    lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]],
    access: AccessLog,
    cors_origins: Sequence[str] = (),
) -> FastAPI:
    """Return the application that serves `service`; `metrics` gathers the metrics for /metrics.

    Without `api_keys` no key is required. Pages of `cors_origins` may call the API from a browser. Streams have a
    comment every `keepalive_s`.
    """
    app = FastAPI(title="Palimpsest", lifespan=lifespan)
    app.add_middleware(RequestBodyLimitMiddleware, max_body_size=max_body_bytes)
    app.add_middleware(DeclaredLengthMiddleware, max_body_size=max_body_bytes)
    if cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=cors_origins,
            allow_methods=CORS_METHODS,
            allow_headers=["*"],
            expose_headers=CORS_EXPOSED,
        )
    app.add_middleware(AccessMiddleware, log=access)
    app.state.max_body_size = max_body_bytes
    created = int(time.time())

    async def authorized(request: Request) -> None:
        request.state.tenant = check_keys(keys_of(request.headers.items()), api_keys)

    guards = [Depends(BEARER), Depends(authorized)]
    catalogue = service.catalogue
    app.include_router(generation_routes(service, guards, keepalive_s))
    app.include_router(context_routes(service, denoiser, guards, keepalive_s))

    @app.get("/")
    async def root() -> Json:
        links = {"models": "/v1/models", "health": "/health", "metrics": "/metrics", "docs": "/docs"}
        return {"name": "palimpsest", "version": installed_version(), **links}

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
        reason = service.contact.reason
        if reason is None:
            return {"status": "ok"}
        return {"status": "degraded", "reason": f"{reason}; {WITHOUT_SERVICE}"}

    @app.get("/metrics")
    async def exposition(request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(await metrics()), media_type=content_type)

    for route in app.routes:
        methods: set[str] = getattr(route, "methods", None) or set()
        if "GET" in methods:
            methods.add("HEAD")
    for kind in (RequestValidationError, HTTPException, ClusterError, WorkerError, Exception):
        app.add_exception_handler(kind, refuse)
    return app


def installed_version() -> str | None:
    """Return the package's version; None where its sources run without an installation."""
    try:
        return version("palimpsest")
    except PackageNotFoundError:
        return None


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
