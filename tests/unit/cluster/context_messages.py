"""Messages about shared contexts, and helpers to read the replies."""

from __future__ import annotations

import grpc
import pytest

from protos import contexts_v1_pb2 as pb
from protos import inference_v1_pb2 as inference
from protos.contexts_v1_pb2_grpc import ContextsStub


def text(*parts: str | int) -> pb.TextParts:
    """Return texts, and holes by their lengths."""
    return pb.TextParts(
        parts=[pb.TextPart(text=part) if isinstance(part, str) else pb.TextPart(hole=part) for part in parts]
    )


def tokens(*parts: list[int] | int) -> pb.TokenParts:
    return pb.TokenParts(
        parts=[
            pb.TokenPart(hole=part) if isinstance(part, int) else pb.TokenPart(tokens=inference.TokenIds(ids=part))
            for part in parts
        ]
    )


def sheet(*parts: str | int) -> pb.ContextContent:
    return pb.ContextContent(turns=pb.Turns(turns=[pb.Turn(role="system", parts=text(*parts).parts)]))


async def created(stub: ContextsStub, content: pb.ContextContent, salt: str = "") -> pb.Context:
    response = await stub.Create(pb.CreateContextRequest(content=content, cache_salt=salt))
    context: pb.Context = response.context
    return context


def edit(context: pb.Context, *edits: pb.ContextEdit) -> pb.ChangeContextRequest:
    return pb.ChangeContextRequest(id=context.id, expected_epoch=context.epoch, edits=pb.ContextEdits(edits=edits))


def replaced(found: str, by: str) -> pb.ContextEdit:
    return pb.ContextEdit(find=found, text=text(by))


async def refusal(call: grpc.aio.Call) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await (all_of(call) if isinstance(call, grpc.aio.UnaryStreamCall) else call)
    return refused.value


async def all_of(call: grpc.aio.UnaryStreamCall) -> list[pb.DenoiseResponse]:
    return [message async for message in call]
