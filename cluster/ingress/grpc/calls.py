"""Handle what all gRPC calls have in common: API keys, errors, decoding parameters and the report of the work."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, MutableMapping
from contextlib import asynccontextmanager
from typing import Any

from grpc import StatusCode

from cache_service.core.types import TenantId
from cache_service.rpc.status import details_of
from cluster.errors import RequestError
from cluster.ingress.access import CLIENT_LEFT, Exchange, current_exchange, note_reply
from cluster.ingress.errors import INTERNAL, Reply, reply_to
from cluster.ingress.keys import check_keys, keys_of
from protos import contexts_v1_pb2, inference_v1_pb2
from workers.api import PARAMETERS, DecodingParams, Usage

logger = logging.getLogger(__name__)

ON_THE_WAY_S = 1.0
"""A client's own clock may cancel a call up to this long before the deadline passes here."""
PUSHBACK = "grpc-retry-pushback-ms"
"""The trailer by which a server directs gRPC's own retries (proposal A6)."""
NO_RETRY = -1


@asynccontextmanager
async def guarded_call(context: Any, api_keys: frozenset[str]) -> AsyncIterator[TenantId]:
    """Check the API key and yield its tenant; end the call with the status of any error that is raised inside.

    The outcome is noted in the access log.
    """
    exchange = current_exchange()
    try:
        tenant = check_keys(keys_of(context.invocation_metadata() or ()), api_keys)
        if exchange is not None and exchange.refusal is not None:
            raise exchange.refusal
        yield tenant
    except (asyncio.CancelledError, GeneratorExit):
        end_exchange(exchange, cancelled_status(context))
        raise
    except Exception as error:
        reply = reply_to(error)
        if reply.status is INTERNAL:
            logger.exception("a call failed")
        note_reply(reply)
        end_exchange(exchange, reply.status.grpc)
        await context.abort(reply.status.grpc, details_of(reply.message), trailer_of(reply))
    else:
        end_exchange(exchange, StatusCode.OK)


def cancelled_status(context: Any) -> StatusCode:
    """Return the status of a call that was stopped: by its deadline, or by its client."""
    remaining_s = context.time_remaining()
    return StatusCode.CANCELLED if remaining_s is None or remaining_s > ON_THE_WAY_S else StatusCode.DEADLINE_EXCEEDED


def end_exchange(exchange: Exchange | None, status: StatusCode) -> None:
    if exchange is not None:
        reason = CLIENT_LEFT if status is StatusCode.CANCELLED else exchange.reason or status.name.lower()
        exchange.end(exchange.path, status.name, reason)


def trailer_of(reply: Reply) -> tuple[tuple[str, str], ...]:
    """Return the trailers for values that HTTP reports in a header or field."""
    pushback_ms = NO_RETRY if reply.retry_after_s is None else math.ceil(1000 * reply.retry_after_s)
    trailer = [(PUSHBACK, str(pushback_ms))]
    if reply.retry_after_s is not None:
        trailer.append(("retry-after", str(math.ceil(reply.retry_after_s))))
    if reply.param is not None:
        trailer.append(("param", reply.param))
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
