"""Build the Ray Serve application: one ingress for HTTP and gRPC, and the workers behind the prefix-affinity router.

`cluster.app:build` is the import path that a serveConfigV2 names; its args are the content of the configuration file.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any

import ray
from fastapi import FastAPI
from prometheus_client import REGISTRY
from prometheus_client.registry import Collector
from ray import serve
from ray.serve import Application, Deployment
from ray.serve.config import RequestRouterConfig
from ray.serve.handle import DeploymentHandle

from cache_service.client.client import CacheClient
from cache_service.config import address_of
from cache_service.logs import configure_logs, formatter_of
from cluster.background import contact_of_process, tasks_of_process
from cluster.config import ClusterConfig
from cluster.config_file import default_max_tokens, parse_config, resolve_model_directory
from cluster.generation.answer import InferenceService
from cluster.generation.contexts.denoising import ContextDenoiser
from cluster.generation.encoding import TextEncoder
from cluster.generation.replicas import WorkerReplicas
from cluster.ingress.access import AccessLog
from cluster.ingress.grpc.server import serving
from cluster.ingress.http.app import create_app
from cluster.ingress.http.leaving import ClientLeftMiddleware
from cluster.metrics import Expositions, Federation, IngressMetrics
from workers.ray_internals import adapt_serve_logs

logger = logging.getLogger(__name__)

WORKERS, INGRESS = "DiffusionWorker", "Ingress"
"""Names of the deployments."""
UNBOUNDED_REQUESTS = 1_000_000
"""Limit on the ingress's requests, high enough never to matter: the workers' queue refuses excess requests."""
CONSTRUCTOR_ATTEMPTS = 2
"""Number of attempts to start a replica: few, since a model that fails to load once usually fails again."""
HEALTH_PERIOD_S, HEALTH_TIMEOUT_S = 2.0, 10.0


class Ingress:
    """Runs one ingress replica: tokenizer, both servers, and the handle to the workers."""

    def __init__(self, config: ClusterConfig, workers: DeploymentHandle) -> None:
        self._config = config
        self._api_keys = config.api_keys.read(os.environ)
        configure_logs(config.logs)
        adapt_serve_logs(formatter_of(config.logs))
        self._metrics = IngressMetrics()
        self._access = AccessLog(self._metrics, writes_lines=config.logs.access)
        self._workers = WorkerReplicas(workers)
        self._cache = CacheClient(config.cache_service.target)
        self._service = InferenceService(
            self._workers,
            TextEncoder(config.worker.model, cut_share=config.worker.bicache.cut_share),
            self._metrics,
            self._cache,
            name=config.name,
            max_tokens=default_max_tokens(config),
            timeout_s=config.limits.request_timeout_s,
            background=tasks_of_process(),
            contact=contact_of_process(),
        )
        self._denoiser = ContextDenoiser(self._service, self._metrics, config.worker.engine.block_length)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Return the HTTP application; Serve calls this by the name in `workers.ray_internals.ASGI_APP_METHOD`."""
        app = create_app(
            self._service,
            self._denoiser,
            api_keys=self._api_keys,
            max_body_bytes=self._config.limits.max_body_bytes,
            keepalive_s=self._config.http.keepalive_s,
            metrics=self._gather,
            lifespan=self._lifespan,
            access=self._access,
            cors_origins=self._config.http.cors_origins,
        )
        app.add_middleware(ClientLeftMiddleware)
        return app

    @asynccontextmanager
    async def _lifespan(self, _app: FastAPI) -> AsyncIterator[None]:
        address = address_of(self._config.grpc.host, self._config.grpc.port)
        limits = self._config.limits
        server = serving(
            self._service,
            self._denoiser,
            address,
            self._api_keys,
            max_message_bytes=limits.max_body_bytes,
            access=self._access,
            grace_s=limits.shutdown_grace_s,
        )
        async with self._cache, server:
            logger.info("gRPC is served at %s", address)
            yield

    async def drain(self) -> None:
        """Refuse new requests, and return once the running ones have ended."""
        await self._service.admission.drain()

    async def _gather(self) -> Collector:
        return Federation(REGISTRY, self._metrics.registry, Expositions(await self._workers.metrics()))


def build(args: Mapping[str, Any]) -> Application:
    """Return the application for the content of a configuration file. Raises ConfigError."""
    config = resolve_model_directory(parse_config(args))
    gpus = int(ray.cluster_resources().get("GPU", 0)) if ray.is_initialized() else 0
    workers = worker_deployment(config, num_gpus=gpus)
    ingress = serve.deployment(
        serve.ingress()(Ingress),
        name=INGRESS,
        max_ongoing_requests=UNBOUNDED_REQUESTS,
        ray_actor_options={"num_cpus": config.resources.ingress_cpus},
        health_check_period_s=HEALTH_PERIOD_S,
        health_check_timeout_s=HEALTH_TIMEOUT_S,
        graceful_shutdown_timeout_s=config.limits.shutdown_grace_s,
    )
    return ingress.bind(config, workers)


def worker_deployment(config: ClusterConfig, *, num_gpus: int) -> Application:
    """Return the workers' deployment for a cluster with `num_gpus` GPUs."""
    from workers.deployment import DiffusionWorker  # torch comes with it, which an ingress has no use for

    on_gpu, replicas = config.is_on_gpus(num_gpus), config.num_replicas(num_gpus)
    deployment: Deployment = serve.deployment(
        DiffusionWorker,
        name=WORKERS,
        num_replicas=replicas,
        max_ongoing_requests=config.limits.max_ongoing,
        max_queued_requests=config.limits.max_queued,
        ray_actor_options={"num_cpus": config.resources.worker_cpus, "num_gpus": 1 if on_gpu else 0},
        request_router_config=RequestRouterConfig(
            request_router_class="cluster.router:PrefixAffinityRouter",
            request_router_kwargs={
                "deployment": WORKERS,
                "cache_service": config.cache_service.target,
                "request_timeout_s": config.limits.request_timeout_s,
                "cut_share": config.worker.bicache.cut_share,
                **asdict(config.router),
            },
        ),
        max_constructor_retry_count=CONSTRUCTOR_ATTEMPTS,
        health_check_period_s=HEALTH_PERIOD_S,
        health_check_timeout_s=HEALTH_TIMEOUT_S,
        graceful_shutdown_timeout_s=config.limits.shutdown_grace_s,
    )
    application: Application = deployment.bind(config.worker, config.logs)
    return application
