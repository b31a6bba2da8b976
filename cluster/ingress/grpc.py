"""The gRPC API: decode, call the service, encode. Protobuf classes go no further than this."""

from __future__ import annotations

import asyncio
import logging
import math
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from functools import partial
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from cache_service.contexts import MAX_STALENESS
from cache_service.types import ContextId
from cluster.errors import ClusterError, RequestError
from cluster.ingress.errors import INTERNAL, reply_to
from cluster.ingress.events import ContextChoice, Finished, Text
from cluster.ingress.keys import check_key
from cluster.ingress.service import Call, InferenceService
from cluster.tokenization import Conversation, Message, Prompt, TextPrompt, TokenPrompt
from protos import inference_v1_pb2 as pb
from protos import inference_v1_pb2_grpc as pb_grpc
from workers.api import ContextMode, DecodingParams, FinishReason

logger = logging.getLogger(__name__)

SERVICE: str = pb.DESCRIPTOR.services_by_name["Inference"].full_name
REASONS = {FinishReason.STOP: pb.FINISH_REASON_STOP, FinishReason.LENGTH: pb.FINISH_REASON_LENGTH}
MODES = {ContextMode.PIN: pb.CONTEXT_MODE_PIN, ContextMode.FOLLOW: pb.CONTEXT_MODE_FOLLOW}
STARTING_PERIOD_S, SERVING_PERIOD_S = 0.5, 5.0
"""How often the health service asks whether a worker answers: until one does, and from then on."""
GRACE_S = 1.0


class InferenceServicer(pb_grpc.InferenceServicer):
    """`palimpsest.inference.v1.Inference` over an `InferenceService`."""

    def __init__(self, service: InferenceService, api_keys: frozenset[str]) -> None:
        self._service = service
        self._api_keys = api_keys

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> pb.GenerateResponse:  # noqa: N802
        async with self._answered(context):
            call = call_of(request)
            answer = await self._service.answer(call, timeout_s=context.time_remaining())
            return pb.GenerateResponse(
                id=call.request_id, model=self._service.name, text=answer.text, **closing(answer.finished)
            )

    async def GenerateStream(  # noqa: N802
        self, request: pb.GenerateRequest, context: Any
    ) -> AsyncGenerator[pb.GenerateStreamResponse, None]:
        async with self._answered(context):
            call = call_of(request)
            message = partial(pb.GenerateStreamResponse, id=call.request_id, model=self._service.name)
            async with aclosing(self._service.generate(call, timeout_s=context.time_remaining())) as events:
                async for event in events:
                    match event:
                        case Text(text):
                            yield message(text=text)
                        case Finished():
                            yield message(**closing(event))

    async def ListModels(self, request: pb.ListModelsRequest, context: Any) -> pb.ListModelsResponse:  # noqa: N802
        async with self._answered(context):
            info = await self._service.model()
            model = pb.Model(id=self._service.name, context_length=info.context_length, fingerprint=info.fingerprint)
            return pb.ListModelsResponse(models=[model])

    @asynccontextmanager
    async def _answered(self, context: Any) -> AsyncIterator[None]:
        """Checks the API key, and ends the call with the status of whatever is raised inside."""
        try:
            check_key(bearer_of(context.invocation_metadata()), self._api_keys)
            yield
        except (asyncio.CancelledError, GeneratorExit):
            raise
        except Exception as error:
            reply = reply_to(error)
            if reply.status is INTERNAL:
                logger.exception("a call failed")
            retry = reply.retry_after_s
            trailer = () if retry is None else (("retry-after", str(math.ceil(retry))),)
            await context.abort(reply.status.grpc, reply.message, trailer)


def bearer_of(metadata: Any) -> str | None:
    values = [str(value) for key, value in metadata or () if key == "authorization"]
    return values[0].removeprefix("Bearer ") if values else None


def call_of(request: pb.GenerateRequest) -> Call:
    """Raises RequestError for a request that says too little or too much."""
    if request.HasField("max_tokens") and request.max_tokens < 1:
        raise RequestError("max_tokens must be at least 1", param="max_tokens")
    if not 0 <= request.temperature <= 2:
        raise RequestError("temperature must lie between 0 and 2", param="temperature")
    if not all(request.stop):
        raise RequestError("a stop string must not be empty", param="stop")
    if request.suffix and request.HasField("conversation"):
        raise RequestError("a suffix needs a prompt of text or token_ids", param="suffix")
    return Call(
        request_id=uuid.uuid4().hex,
        prompt=prompt_of(request),
        suffix=request.suffix,
        model=request.model or None,
        max_tokens=request.max_tokens if request.HasField("max_tokens") else None,
        params=params_of(request),
        stop=tuple(request.stop),
        cache_salt=request.cache_salt,
        context=choice_of(request.context) if request.HasField("context") else None,
    )


def choice_of(context: pb.ContextChoice) -> ContextChoice:
    if not context.id:
        raise RequestError("context.id must not be empty", param="context.id")
    if context.max_staleness > MAX_STALENESS:
        raise RequestError(f"context.max_staleness must be at most {MAX_STALENESS}", param="context.max_staleness")
    mode = ContextMode.FOLLOW if context.mode == pb.CONTEXT_MODE_FOLLOW else ContextMode.PIN
    return ContextChoice(ContextId(context.id), mode, context.max_staleness)


def prompt_of(request: pb.GenerateRequest) -> Prompt:
    match request.WhichOneof("prompt"):
        case "conversation" if request.conversation.messages:
            return Conversation(tuple(Message(turn.role, turn.content) for turn in request.conversation.messages))
        case "text":
            return TextPrompt(request.text)
        case "token_ids":
            return TokenPrompt(tuple(request.token_ids.ids))
        case _:
            raise RequestError("give a prompt: conversation (with messages), text or token_ids", param="prompt")


def params_of(request: pb.GenerateRequest) -> DecodingParams:
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


def closing(finished: Finished) -> dict[str, Any]:
    """The fields with which an answer ends."""
    counts, named = finished.usage, finished.context
    report = named and pb.ContextReport(id=named.id, mode=MODES[named.mode], epochs=counts.epochs)
    return {
        "context": report,
        "finish_reason": REASONS[finished.reason],
        "usage": pb.Usage(
            prompt_tokens=counts.prompt_tokens,
            completion_tokens=counts.completion_tokens,
            cached_tokens=counts.cached_tokens,
        ),
        "diffusion": pb.DiffusionReport(
            policy=counts.policy,
            steps=counts.num_steps,
            forwards=counts.num_forwards,
            reuse_depth=counts.reuse_depth,
            replica=counts.replica,
        ),
    }


@asynccontextmanager
async def serving(service: InferenceService, address: str, api_keys: frozenset[str]) -> AsyncIterator[int]:
    """A server with health and reflection at `address`, for as long as the context lasts; yields its port.

    Health is SERVING while a worker answers. Raises ClusterError where the address can't be had.
    """
    server = grpc.aio.server()
    pb_grpc.add_InferenceServicer_to_server(InferenceServicer(service, api_keys), server)  # type: ignore[no-untyped-call]
    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
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
        for name in ("", SERVICE):
            await servicer.set(name, status)
        await asyncio.sleep(SERVING_PERIOD_S if ready else STARTING_PERIOD_S)
