"""Run the gRPC server: both services, health and reflection."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from cluster.errors import ClusterError
from cluster.generation.answer import InferenceService
from cluster.generation.contexts.denoising import ContextDenoiser
from cluster.ingress.access import AccessLog
from cluster.ingress.grpc.access import AccessInterceptor
from cluster.ingress.grpc.contexts import ContextsServicer
from cluster.ingress.grpc.inference import InferenceServicer
from cluster.metrics import IngressMetrics
from protos import contexts_v1_pb2, contexts_v1_pb2_grpc, inference_v1_pb2, inference_v1_pb2_grpc

logger = logging.getLogger(__name__)

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
INFERENCE: str = inference_v1_pb2.DESCRIPTOR.services_by_name["Inference"].full_name
CONTEXTS: str = contexts_v1_pb2.DESCRIPTOR.services_by_name["Contexts"].full_name
STARTING_PERIOD_S, SERVING_PERIOD_S = 0.5, 5.0
"""Seconds between two health checks: until the ingress can serve, and from then on."""
READ_ANYWAY_BYTES = 16 << 20
"""Bytes beyond the limit up to which a message is read before it is refused; gRPC refuses longer ones by itself, and
then neither log nor metrics show it."""


@asynccontextmanager
async def serving(
    service: InferenceService,
    denoiser: ContextDenoiser,
    address: str,
    api_keys: frozenset[str],
    *,
    max_message_bytes: int,
    access: AccessLog | None = None,
    grace_s: float = 1.0,
) -> AsyncIterator[int]:
    """Run a server with health and reflection at `address` for as long as the context lasts; yield its port.

    Health is SERVING while `service` is healthy. Calls are noted in `access`. At the end, running calls get `grace_s`.
    Raises ClusterError if it can't bind the address.
    """
    server = grpc.aio.server(
        interceptors=(AccessInterceptor(access or AccessLog(IngressMetrics()), max_message_bytes),),
        options=(("grpc.max_receive_message_length", max_message_bytes + READ_ANYWAY_BYTES),),
    )
    inference, contexts = InferenceServicer(service, api_keys), ContextsServicer(service, denoiser, api_keys)
    inference_v1_pb2_grpc.add_InferenceServicer_to_server(inference, server)  # type: ignore[no-untyped-call]
    contexts_v1_pb2_grpc.add_ContextsServicer_to_server(contexts, server)  # type: ignore[no-untyped-call]
    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    names = (INFERENCE, CONTEXTS, health.SERVICE_NAME, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server)
    try:
        port: int = server.add_insecure_port(address)
    except RuntimeError as error:
        raise ClusterError(f"gRPC can't listen at {address}; set grpc.host, grpc.port or --grpc-port") from error
    await server.start()
    background = service.background
    try:
        async with (
            background.running("the gRPC server", wait_until_stopped(server)),
            background.running("the report of health over gRPC", report_health(service, servicer)),
        ):
            yield port
    finally:
        await server.stop(grace_s)


async def wait_until_stopped(server: Any) -> None:
    """Wait until the server has stopped. This wait, unlike gRPC's own, can be cancelled without harm to the server."""
    await asyncio.shield(server.wait_for_termination())


async def report_health(service: InferenceService, servicer: Any) -> None:
    """Report periodically whether this ingress can serve; when this ends, report that it can't."""
    try:
        while True:
            is_healthy = await can_serve(service)
            await set_status(servicer, SERVING if is_healthy else NOT_SERVING)
            await asyncio.sleep(SERVING_PERIOD_S if is_healthy else STARTING_PERIOD_S)
    finally:
        await set_status(servicer, NOT_SERVING)


async def can_serve(service: InferenceService) -> bool:
    """Return whether the service is healthy. An unexpected error in the check counts as unhealthy."""
    try:
        await service.check_health()
    except ClusterError:
        return False
    except Exception:
        logger.exception("the health check failed; the next one follows in %g s", STARTING_PERIOD_S)
        return False
    return True


async def set_status(servicer: Any, status: int) -> None:
    for name in ("", INFERENCE, CONTEXTS):
        await servicer.set(name, status)
