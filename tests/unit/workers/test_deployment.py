"""Copies between replicas through fakes of Ray: holders that are gone, refusals, and the way back from nixl."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from ray.exceptions import ActorDiedError
from ray.serve.exceptions import BackPressureError

from cache_service.core.types import PrefixKey, ReplicaId
from tests.support.ray_serve import Handle, Response, answering
from workers import deployment
from workers.api import CopyRequest, GenerateChunk, GenerateRequest
from workers.bicache.copies import EntryCopy, EntryFormat, TransferError
from workers.config import CoherenceConfig
from workers.deployment import (
    NIXL,
    OBJECT_STORE,
    BodyReference,
    DiffusionWorker,
    NoDirectTransportError,
    PackedCopy,
    ServeTransport,
    has_direct_transport,
)
from workers.errors import InvalidRequestError

A, B = ReplicaId("a"), ReplicaId("b")
REQUEST = CopyRequest(A, PrefixKey(b"key"), (2,))
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def a_copy() -> EntryCopy:
    layout = EntryFormat("f", "e", "float32", 4, 4, 8, 32, 4)
    body = torch.arange(24, dtype=torch.uint8)
    return EntryCopy(layout, REQUEST.key, (1, 2, 3), 2, (), (), body).sealed()


@dataclass
class FakeRay:
    """Keeps what is put, and gives it back unless it is `broken`."""

    broken: Exception | None = None
    kept: list[torch.Tensor] = field(default_factory=list)
    options: list[dict[str, Any]] = field(default_factory=list)
    timeouts: list[float | None] = field(default_factory=list)

    def put(self, value: torch.Tensor, **options: Any) -> int:
        self.kept.append(value)
        self.options.append(options)
        return len(self.kept) - 1

    def get(self, reference: int, timeout: float | None = None) -> torch.Tensor:
        self.timeouts.append(timeout)
        if self.broken:
            raise self.broken
        return self.kept[reference].clone()


@pytest.fixture
def fake_ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    fake = FakeRay()
    monkeypatch.setattr(deployment, "ray", fake)
    return fake


@pytest.fixture
def handle(monkeypatch: pytest.MonkeyPatch) -> Handle:
    handle = Handle()
    monkeypatch.setattr(deployment.serve, "get_deployment_handle", lambda *_: handle)
    return handle


def transport(*, direct: bool) -> ServeTransport:
    return ServeTransport("DiffusionWorker", "palimpsest", direct=direct, timeout_s=3.0)


def assert_same(copy: EntryCopy | None, transport: str) -> None:
    assert copy is not None
    assert copy.transport == transport
    assert copy.digest() == copy.seal == a_copy().seal


async def test_a_copy_comes_through_the_object_store(handle: Handle) -> None:
    packed = PackedCopy.pack(a_copy(), direct=False)
    assert isinstance(packed.body, np.ndarray)
    packed.body.setflags(write=False)  # as Ray's object store hands it out
    handle.send_packed_copy.responses = [answering(packed)]

    copy = await transport(direct=False).fetch(REQUEST)

    assert_same(copy, OBJECT_STORE)
    assert copy is not None
    copy.body.zero_()
    assert packed.body.any(), "the copy has memory of its own"
    assert handle.send_packed_copy.calls == [REQUEST]


async def test_a_copy_is_read_out_of_its_holders_memory(handle: Handle, fake_ray: FakeRay) -> None:
    handle.send_packed_copy.responses = [answering(PackedCopy.pack(a_copy(), direct=True))]

    copy = await transport(direct=True).fetch(REQUEST)

    assert_same(copy, NIXL)
    assert handle.send_packed_copy.calls == [replace(REQUEST, direct=True)]
    assert (fake_ray.options, fake_ray.timeouts) == ([{"_tensor_transport": NIXL}], [3.0])


def test_a_parcel_carries_the_body_once() -> None:
    packed = PackedCopy.pack(a_copy(), direct=False)
    assert packed.copy.body.numel() == 0
    assert packed.copy.seal == a_copy().seal


@pytest.mark.parametrize("direct", [False, True])
async def test_a_holder_without_the_entry_has_no_copy(handle: Handle, direct: bool) -> None:
    handle.send_packed_copy.responses = [answering(None)]
    assert await transport(direct=direct).fetch(REQUEST) is None


@pytest.mark.parametrize("error", [ActorDiedError(), BackPressureError(1, 1)])
async def test_a_holder_that_is_gone_is_a_failed_transfer(handle: Handle, error: Exception) -> None:
    handle.send_packed_copy.responses = [answering(error), answering(None)]
    fetching = transport(direct=True)

    with pytest.raises(TransferError, match="replica a didn't answer") as failure:
        await fetching.fetch(REQUEST)
    assert failure.value.__cause__ is error

    await fetching.fetch(REQUEST)
    assert [call.direct for call in handle.send_packed_copy.calls] == [True, True], "its memory may still be in reach"


async def test_a_fault_of_ours_is_not_hidden_as_a_failed_transfer(handle: Handle) -> None:
    handle.send_packed_copy.responses = [answering(KeyError("bug"))]
    with pytest.raises(KeyError):
        await transport(direct=False).fetch(REQUEST)


async def test_a_holder_whose_memory_cannot_be_read_is_asked_for_the_bytes_next(
    handle: Handle, fake_ray: FakeRay
) -> None:
    fake_ray.broken = RuntimeError("nixl: no such peer")
    by_reference, by_value = (PackedCopy.pack(a_copy(), direct=direct) for direct in (True, False))
    handle.send_packed_copy.responses = [answering(packed) for packed in (by_reference, by_value, by_value)]
    fetching = transport(direct=True)

    with pytest.raises(TransferError, match="a's memory couldn't be read: nixl"):
        await fetching.fetch(REQUEST)
    assert_same(await fetching.fetch(REQUEST), OBJECT_STORE)
    await fetching.fetch(replace(REQUEST, holder=B))

    assert [(call.holder, call.direct) for call in handle.send_packed_copy.calls] == [(A, True), (A, False), (B, True)]


async def test_a_fetch_that_is_cancelled_cancels_the_call(handle: Handle) -> None:
    asked = asyncio.Event()

    async def ask() -> object:
        asked.set()
        return await asyncio.Event().wait()

    response = Response(ask)
    handle.send_packed_copy.responses = [response]
    fetching = asyncio.create_task(transport(direct=False).fetch(REQUEST))
    await asked.wait()
    fetching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await fetching
    assert response.is_cancelled


@pytest.mark.parametrize(
    ("asked", "can", "by_reference"), [(True, True, True), (True, False, False), (False, True, False)]
)
async def test_a_worker_hands_out_by_reference_where_both_sides_can(
    fake_ray: FakeRay, asked: bool, can: bool, by_reference: bool
) -> None:
    async def send_copy(_: CopyRequest) -> EntryCopy:
        return a_copy()

    worker = cast(DiffusionWorker, SimpleNamespace(send_copy=send_copy, _direct=can))
    packed = await DiffusionWorker.send_packed_copy(worker, replace(REQUEST, direct=asked))

    assert packed is not None
    assert isinstance(packed.body, BodyReference) is by_reference
    assert len(fake_ray.kept) == by_reference


async def test_a_worker_without_the_entry_hands_out_nothing() -> None:
    async def send_copy(_: CopyRequest) -> None: ...

    worker = cast(DiffusionWorker, SimpleNamespace(send_copy=send_copy, _direct=True))
    assert await DiffusionWorker.send_packed_copy(worker, REQUEST) is None


@pytest.mark.parametrize("error", [InvalidRequestError("no", param="seed"), KeyError("bug")])
async def test_a_workers_error_is_its_last_reply_and_a_fault_is_raised(error: Exception) -> None:
    chunk, is_closed = GenerateChunk("r", (3,)), asyncio.Event()

    async def generate(_: GenerateRequest) -> AsyncGenerator[GenerateChunk, None]:
        try:
            yield chunk
            raise error
        finally:
            is_closed.set()

    worker = cast(DiffusionWorker, SimpleNamespace(generate=generate))
    replies: AsyncIterator[object] = DiffusionWorker.replies(worker, GenerateRequest("r", (1,), 4))
    assert await anext(replies) == chunk
    if isinstance(error, InvalidRequestError):
        assert [reply async for reply in replies] == [error]
    else:
        with pytest.raises(KeyError):
            await anext(replies)
    assert is_closed.is_set()


@pytest.mark.parametrize(
    ("config", "device", "num_replicas", "is_tried"),
    [
        (CoherenceConfig(transfer="never", tensor_transport="nixl"), CUDA, 2, False),
        (CoherenceConfig(tensor_transport="object_store"), CUDA, 2, False),
        (CoherenceConfig(tensor_transport="auto"), CPU, 2, False),
        (CoherenceConfig(tensor_transport="auto"), CUDA, 1, False),
        (CoherenceConfig(tensor_transport="auto"), CUDA, 2, True),
        (CoherenceConfig(tensor_transport="nixl"), CPU, 1, True),
    ],
)
def test_the_direct_transport_is_tried_only_where_it_may_be_used(
    fake_ray: FakeRay, config: CoherenceConfig, device: torch.device, num_replicas: int, is_tried: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *size, dtype, device: zeros(*size, dtype=dtype))  # there may be no GPU

    assert has_direct_transport(config, device, num_replicas) is is_tried
    assert len(fake_ray.timeouts) == is_tried


def test_auto_falls_back_to_the_object_store_and_nixl_insists(
    fake_ray: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *size, dtype, device: zeros(*size, dtype=dtype))
    fake_ray.broken = ImportError("no nixl")

    assert not has_direct_transport(CoherenceConfig(tensor_transport="auto"), CUDA, 2)
    with pytest.raises(NoDirectTransportError, match=r"palimpsest\[rdt\]"):
        has_direct_transport(CoherenceConfig(tensor_transport="nixl"), CUDA, 2)
