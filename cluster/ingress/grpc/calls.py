"""Handle what all gRPC calls have in common: API keys, errors, decoding parameters and the report of the work."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, MutableMapping
from contextlib import asynccontextmanager
from typing import Any

from cache_service.core.types import TenantId
from cache_service.rpc.status import details_of
from cluster.errors import RequestError
from cluster.ingress.errors import INTERNAL, Reply, reply_to
from cluster.ingress.keys import check_key
from protos import contexts_v1_pb2, inference_v1_pb2
from workers.api import PARAMETERS, DecodingParams, Usage

logger = logging.getLogger(__name__)


@asynccontextmanager
async def guarded_call(context: Any, api_keys: frozenset[str]) -> AsyncIterator[TenantId]:
    """Check the API key, yield its tenant, and end the call with the status of any error that is raised inside."""
    try:
        yield check_key(bearer_of(context.invocation_metadata()), api_keys)
    except (asyncio.CancelledError, GeneratorExit):
        raise
    except Exception as error:
        reply = reply_to(error)
        if reply.status is INTERNAL:
            logger.exception("a call failed")
        await context.abort(reply.status.grpc, details_of(reply.message), trailer_of(reply))


def bearer_of(metadata: Any) -> str | None:
    values = [str(value) for key, value in metadata or () if key == "authorization"]
    return values[0].removeprefix("Bearer ") if values else None


def trailer_of(reply: Reply) -> tuple[tuple[str, str], ...]:
    """Return the trailers for values that HTTP reports in a header or field."""
    trailer: list[tuple[str, str]] = []
    if reply.retry_after_s is not None:
        trailer.append(("retry-after", str(math.ceil(reply.retry_after_s))))
    if reply.current_epoch is not None:
        trailer.append(("current-epoch", str(reply.current_epoch)))
    return tuple(trailer)


def params_from_pb(request: inference_v1_pb2.GenerateRequest | contexts_v1_pb2.DenoiseRequest) -> DecodingParams:
    """Return the decoding parameters that are set. Raises RequestError for a number out of bounds."""
    given: dict[str, Any] = {}
    for parameter in PARAMETERS:
        message: Any = request if parameter.is_openai else request.diffusion
        name = parameter.client_name
        if message.DESCRIPTOR.fields_by_name[name].has_presence and not message.HasField(name):
            continue
        value = getattr(message, name)
        given[parameter.name] = value = tuple(value.items()) if isinstance(value, MutableMapping) else value
        if (beyond := parameter.find_out_of_bounds(value)) is not None:
            raise RequestError(f"{parameter.path} {parameter.bounds}, got {beyond}", param=parameter.path)
    return DecodingParams(**given)


def work_done(counts: Usage) -> inference_v1_pb2.DiffusionReport:
    return inference_v1_pb2.DiffusionReport(
        policy=counts.policy,
        steps=counts.num_steps,
        forwards=counts.num_forwards,
        prefix_tokens=counts.prefix_tokens,
        reuse_depth=counts.reuse_depth,
        depth_limited_by=counts.depth_limited_by.value if counts.depth_limited_by else "",
        replica=counts.replica,
    )
