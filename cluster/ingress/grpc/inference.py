"""Serve `palimpsest.inference.v1.Inference`."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from typing import Any

from cache_service.core.contexts import MAX_STALENESS
from cache_service.core.types import ContextId
from cluster.errors import RequestError
from cluster.generation.answer import InferenceService
from cluster.generation.events import Accepted, ContextChoice, Finished, Text
from cluster.generation.prompts import GenerationCall, fill_canvas
from cluster.generation.stops import MAX_STOP_LENGTH, MAX_STOPS
from cluster.generation.tokenization import Conversation, Message, Prompt, TextPrompt, TokenPrompt
from cluster.ingress.errors import at_paths
from cluster.ingress.grpc.calls import guarded_call, params_from_pb, work_done
from cluster.ingress.grpc.content import role_from_pb
from protos import inference_v1_pb2 as pb
from protos import inference_v1_pb2_grpc as pb_grpc
from workers.api import ContextMode, FinishReason

REASONS = {FinishReason.STOP: pb.FINISH_REASON_STOP, FinishReason.LENGTH: pb.FINISH_REASON_LENGTH}
MODES = {ContextMode.PIN: pb.CONTEXT_MODE_PIN, ContextMode.FOLLOW: pb.CONTEXT_MODE_FOLLOW}
ASKED = {pb.CONTEXT_MODE_UNSPECIFIED: ContextMode.PIN} | {number: mode for mode, number in MODES.items()}


class InferenceServicer(pb_grpc.InferenceServicer):
    """Serves an `InferenceService`."""

    def __init__(self, service: InferenceService, api_keys: frozenset[str]) -> None:
        self._service = service
        self._api_keys = api_keys

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> pb.GenerateResponse:  # noqa: N802
        async with guarded_call(context, self._api_keys):
            call = call_from_pb(request)
            with at_paths(paths_of(request)):
                answer = await self._service.answer(call, timeout_s=context.time_remaining())
            return pb.GenerateResponse(
                id=call.request_id,
                model=self._service.catalogue.name,
                text=answer.text,
                **final_fields(answer.finished),
            )

    async def GenerateStream(  # noqa: N802
        self, request: pb.GenerateRequest, context: Any
    ) -> AsyncGenerator[pb.GenerateStreamResponse, None]:
        async with guarded_call(context, self._api_keys):
            call = call_from_pb(request)
            message = partial(pb.GenerateStreamResponse, id=call.request_id, model=self._service.catalogue.name)
            events = self._service.generate(call, timeout_s=context.time_remaining())
            with at_paths(paths_of(request)):
                async with aclosing(events):
                    async for event in events:
                        match event:
                            case Accepted():
                                await context.send_initial_metadata(())
                            case Text(text):
                                yield message(text=text)
                            case Finished():
                                yield message(**final_fields(event))

    async def ListModels(self, request: pb.ListModelsRequest, context: Any) -> pb.ListModelsResponse:  # noqa: N802
        async with guarded_call(context, self._api_keys):
            info = await self._service.catalogue.model()
            model = pb.Model(
                id=self._service.catalogue.name, context_length=info.context_length, fingerprint=info.fingerprint
            )
            return pb.ListModelsResponse(models=[model])


def call_from_pb(request: pb.GenerateRequest) -> GenerationCall:
    """Return the call that a request describes. Raises RequestError for one that is incomplete or contradictory."""
    if request.HasField("max_tokens") and request.max_tokens < 1:
        raise RequestError(f"max_tokens must be at least 1, got {request.max_tokens}", param="max_tokens")
    if len(request.stop) > MAX_STOPS or not all(1 <= len(stop) <= MAX_STOP_LENGTH for stop in request.stop):
        raise RequestError(
            f"stop takes up to {MAX_STOPS} strings of 1 to {MAX_STOP_LENGTH} characters each", param="stop"
        )
    if request.suffix and request.HasField("conversation"):
        raise RequestError("a suffix needs a prompt of text or token_ids", param="suffix")
    max_tokens = request.max_tokens if request.HasField("max_tokens") else None
    params = params_from_pb(request)
    return GenerationCall(
        request_id=uuid.uuid4().hex,
        prompt=prompt_from_pb(request),
        suffix=request.suffix,
        model=request.model or None,
        max_tokens=max_tokens,
        params=fill_canvas(params, max_tokens) if request.ignore_eos else params,
        stop=tuple(request.stop),
        cache_salt=request.cache_salt,
        context=choice_from_pb(request.context) if request.HasField("context") else None,
    )


def paths_of(request: pb.GenerateRequest) -> dict[str, str]:
    """Return where this request wrote what the service calls its prompt and its messages."""
    written = {"conversation": "conversation.messages", "token_ids": "token_ids.ids", "text": "text"}
    return {"prompt": written[request.WhichOneof("prompt")], "messages": "conversation.messages"}


def choice_from_pb(context: pb.ContextChoice) -> ContextChoice:
    if not context.id:
        raise RequestError("context.id must not be empty", param="context.id")
    if context.max_staleness > MAX_STALENESS:
        raise RequestError(f"context.max_staleness must be at most {MAX_STALENESS}", param="context.max_staleness")
    if context.mode not in ASKED:
        raise RequestError(f"context.mode must be PIN or FOLLOW, got {context.mode}", param="context.mode")
    return ContextChoice(ContextId(context.id), ASKED[context.mode], context.max_staleness)


def prompt_from_pb(request: pb.GenerateRequest) -> Prompt:
    match request.WhichOneof("prompt"):
        case "conversation" if request.conversation.messages:
            turns = enumerate(request.conversation.messages)
            return Conversation(
                tuple(
                    Message(role_from_pb(turn.role, f"conversation.messages.{index}.role"), turn.content)
                    for index, turn in turns
                )
            )
        case "text":
            return TextPrompt(request.text)
        case "token_ids":
            return TokenPrompt(tuple(request.token_ids.ids))
        case _:
            raise RequestError("give a prompt: conversation (with messages), text or token_ids", param="prompt")


def final_fields(finished: Finished) -> dict[str, Any]:
    """Return the fields of an answer's last message."""
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
        "diffusion": work_done(counts),
    }
