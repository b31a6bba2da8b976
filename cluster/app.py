"""Build the Ray Serve application: one ingress for HTTP and gRPC, and the workers behind the prefix-affinity router.

`cluster.app:build` is the import path that a serveConfigV2 names; its args are the content of the configuration file.
"""

from __future__ import annotations

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
from cluster.background import tasks_of_process
from cluster.config import ClusterConfig
from cluster.config_file import default_max_tokens, parse_config, resolve_model_directory
from cluster.generation.answer import InferenceService
from cluster.generation.contexts.denoising import ContextDenoiser
from cluster.generation.encoding import TextEncoder
from cluster.generation.replicas import WorkerReplicas
from cluster.ingress.grpc.server import serving
from cluster.ingress.http.app import create_app
from cluster.ingress.http.leaving import ClientLeftMiddleware
from cluster.metrics import Expositions, Federation, IngressMetrics

WORKERS = "DiffusionWorker"
"""Name of the workers' deployment."""
UNBOUNDED_REQUESTS = 1_000_000
"""Limit on the ingress's requests, high enough never to matter: the workers' queue refuses excess requests."""
CONSTRUCTOR_ATTEMPTS = 2
"""Number of attempts to start a replica: few, since a model that fails to load once usually fails again."""
HEALTH_PERIOD_S, HEALTH_TIMEOUT_S, GRACE_S = 2.0, 10.0, 5.0


class Ingress:
    """Runs one ingress replica: tokenizer, both servers, and the handle to the workers."""

    def __init__(self, config: ClusterConfig, workers: DeploymentHandle) -> None:
        self._config = config
        self._api_keys = config.api_keys.read(os.environ)
        self._metrics = IngressMetrics()
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
        )
        self._denoiser = ContextDenoiser(self._service, self._metrics, config.worker.engine.block_length)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Return the HTTP application; Serve calls this by the name in `workers.ray_internals.ASGI_APP_METHOD`."""
        app = create_app(
            self._service,
            self._denoiser,
            api_keys=self._api_keys,
            max_body_bytes=self._config.limits.max_body_bytes,
            metrics=self._gather,
            lifespan=self._lifespan,
        )
        app.add_middleware(ClientLeftMiddleware)
        return app

    @asynccontextmanager
    async def _lifespan(self, _app: FastAPI) -> AsyncIterator[None]:
        address = address_of(self._config.grpc.host, self._config.grpc.port)
        longest = self._config.limits.max_body_bytes
        server = serving(self._service, self._denoiser, address, self._api_keys, max_message_bytes=longest)
        async with self._cache, server:
            yield

    async def _gather(self) -> Collector:
        return Federation(REGISTRY, self._metrics.registry, Expositions(await self._workers.metrics()))


def build(args: Mapping[str, Any]) -> Application:
    """Return the application for the content of a configuration file. Raises ConfigError."""
    config = resolve_model_directory(parse_config(args))
    gpus = int(ray.cluster_resources().get("GPU", 0)) if ray.is_initialized() else 0
    workers = worker_deployment(config, num_gpus=gpus)
    ingress = serve.deployment(
        serve.ingress()(Ingress),
        name="Ingress",
        max_ongoing_requests=UNBOUNDED_REQUESTS,
        ray_actor_options={"num_cpus": config.resources.ingress_cpus},
        health_check_period_s=HEALTH_PERIOD_S,
        health_check_timeout_s=HEALTH_TIMEOUT_S,
        graceful_shutdown_timeout_s=GRACE_S,
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
        graceful_shutdown_timeout_s=GRACE_S,
    )
    application: Application = deployment.bind(config.worker)
    return application
