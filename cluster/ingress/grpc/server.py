"""The gRPC server: both services, health and reflection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from cluster.errors import ClusterError
from cluster.generation.answer import InferenceService
from cluster.generation.contexts.denoising import ContextDenoiser
from cluster.ingress.grpc.contexts import ContextsServicer
from cluster.ingress.grpc.inference import InferenceServicer
from protos import contexts_v1_pb2, contexts_v1_pb2_grpc, inference_v1_pb2, inference_v1_pb2_grpc

INFERENCE: str = inference_v1_pb2.DESCRIPTOR.services_by_name["Inference"].full_name
CONTEXTS: str = contexts_v1_pb2.DESCRIPTOR.services_by_name["Contexts"].full_name
STARTING_PERIOD_S, SERVING_PERIOD_S = 0.5, 5.0
"""How often the health service asks whether a worker answers: until one does, and from then on."""
GRACE_S = 1.0


@asynccontextmanager
async def serving(
    service: InferenceService,
    denoiser: ContextDenoiser,
    address: str,
    api_keys: frozenset[str],
    *,
    max_message_bytes: int,
) -> AsyncIterator[int]:
    """A server with health and reflection at `address`, for as long as the context lasts; yields its port.

    Health is SERVING while a worker answers. Raises ClusterError where the address can't be had.
    """
    server = grpc.aio.server(options=(("grpc.max_receive_message_length", max_message_bytes),))
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
    reporting = asyncio.create_task(report_health(service, servicer))
    try:
        yield port
    finally:
        reporting.cancel()
        await server.stop(GRACE_S)


async def report_health(service: InferenceService, servicer: Any) -> None:
    """Tell the health service, again and again, whether a worker answers."""
    while True:
        ready = await service.ready()
        status = health_pb2.HealthCheckResponse.SERVING if ready else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("", INFERENCE, CONTEXTS):
            await servicer.set(name, status)
        await asyncio.sleep(SERVING_PERIOD_S if ready else STARTING_PERIOD_S)
