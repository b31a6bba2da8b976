"""What all gRPC calls have in common: who may call, how errors end a call, and how decoding is asked for and told."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from cache_service.rpc.status import details_of
from cluster.errors import RequestError
from cluster.ingress.errors import INTERNAL, Reply, reply_to
from cluster.ingress.keys import check_key
from protos import contexts_v1_pb2, inference_v1_pb2
from workers.api import DecodingParams, Usage

logger = logging.getLogger(__name__)


@asynccontextmanager
async def guarded_call(context: Any, api_keys: frozenset[str]) -> AsyncIterator[None]:
    """Checks the API key, and ends the call with the status of whatever is raised inside."""
    try:
        check_key(bearer_of(context.invocation_metadata()), api_keys)
        yield
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
    """What HTTP tells by a header or a field of its own."""
    trailer: list[tuple[str, str]] = []
    if reply.retry_after_s is not None:
        trailer.append(("retry-after", str(math.ceil(reply.retry_after_s))))
    if reply.current_epoch is not None:
        trailer.append(("current-epoch", str(reply.current_epoch)))
    return tuple(trailer)


def params_of(request: inference_v1_pb2.GenerateRequest | contexts_v1_pb2.DenoiseRequest) -> DecodingParams:
    """Raises RequestError for a temperature out of range; the rest is the worker's to judge."""
    if not 0 <= request.temperature <= 2:
        raise RequestError("temperature must lie between 0 and 2", param="temperature")
    options = request.diffusion

    def given(name: str) -> Any:
        return getattr(options, name) if options.HasField(name) else None

    return DecodingParams(
        num_steps=given("steps"),
        block_length=given("block_length"),
        policy=given("policy"),
        refresh_interval=given("refresh_interval"),
        reuse_depth=given("reuse_depth"),
        anchors=given("anchors"),
        skip_refresh=given("skip_refresh"),
        deterministic=given("deterministic"),
        unmasking=given("unmasking"),
        timetable=given("timetable"),
        threshold=given("threshold"),
        factor=given("factor"),
        remask=options.remask,
        guidance=options.guidance,
        top_p=request.top_p if request.HasField("top_p") else 1.0,
        top_k=given("top_k"),
        logit_bias=tuple(request.logit_bias.items()),
        min_tokens=options.min_tokens,
        temperature=request.temperature,
        seed=request.seed if request.HasField("seed") else None,
    )


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
