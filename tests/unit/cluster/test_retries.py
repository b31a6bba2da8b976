"""Every error says whether a repeat of the request can help, in the way that clients obey."""

from __future__ import annotations

import inspect
import json
import time
from contextlib import suppress
from typing import Any

import grpc
import openai
import pytest
from fastapi.testclient import TestClient

from cluster import errors as cluster_errors
from cluster.errors import (
    AuthenticationError,
    BackgroundTaskError,
    ClusterError,
    ContextConflictError,
    ContextNotFoundError,
    ContextQuotaError,
    ContextsFullError,
    ContextsUnavailableError,
    DrainingError,
    MessageTooLongError,
    ModelNotFoundError,
    NotReadyError,
    ReplicaLostError,
    RequestError,
    RequestTimeoutError,
)
from cluster.generation.answer import InferenceService
from cluster.generation.contexts.denoising import ContextDenoiser
from cluster.ingress.errors import TABLE
from cluster.ingress.grpc.server import serving
from protos import inference_v1_pb2 as pb
from protos.inference_v1_pb2_grpc import InferenceStub
from tests.unit.cluster.local import Fault, LocalWorkers
from workers.errors import InvalidRequestError, NonFiniteLogitsError, OverloadedError, StepFailedError

CHAT = "/v1/chat/completions"
TALK: dict[str, Any] = {"messages": [{"role": "user", "content": "How old is Mira?"}]}
HOPELESS: list[Exception] = [
    RequestError("no"),
    MessageTooLongError("long"),
    InvalidRequestError("no", param="seed"),
    AuthenticationError("no"),
    ModelNotFoundError("no"),
    ContextNotFoundError("no"),
    ContextConflictError("no", current_epoch=3),
    RequestTimeoutError("late"),
    BackgroundTaskError("ended"),
    NonFiniteLogitsError("nan"),
    KeyError("bug"),
    ContextQuotaError("many"),
    ContextsFullError("full"),
]
HOPEFUL: list[tuple[Exception, float]] = [
    (OverloadedError("full", retry_after_s=2.4), 2.4),
    (NotReadyError("starting"), 5.0),
    (DrainingError("stopping"), 1.0),
    (ContextsUnavailableError("away"), 1.0),
    (ReplicaLostError("gone"), 1.0),
    (StepFailedError("step"), 1.0),
]
ALL = [(error, None) for error in HOPELESS] + HOPEFUL
OF_START = {"ClusterError", "ConfigError", "StartError", "TokenizerError"}
"""Errors that no request meets."""


def three_times(error: Exception) -> list[Fault]:
    """Return the faults of one request, which is tried on three replicas if they are lost."""
    return [Fault(error)] * (3 if isinstance(error, ReplicaLostError) else 1)


@pytest.mark.parametrize(("error", "after_s"), ALL, ids=lambda value: type(value).__name__)
def test_an_http_error_says_whether_a_repeat_can_help(
    client: TestClient, workers: LocalWorkers, error: Exception, after_s: float | None
) -> None:
    workers.faults = three_times(error)

    headers = client.post(CHAT, json=TALK).headers

    assert headers["x-should-retry"] == ("false" if after_s is None else "true")
    assert headers.get("retry-after") == (None if after_s is None else str(int(after_s + 0.9)))


@pytest.mark.parametrize(
    ("method", "path", "content"),
    [("POST", CHAT, b"{"), ("POST", CHAT, b"x" * 20_000), ("GET", CHAT, b""), ("GET", "/v1/nothing", b"")],
)
def test_a_refusal_before_the_service_is_no_reason_to_repeat(
    client: TestClient, method: str, path: str, content: bytes
) -> None:
    response = client.request(method, path, content=content, headers={"content-type": "application/json"})

    assert response.headers["x-should-retry"] == "false"


@pytest.mark.parametrize(("error", "after_s"), ALL, ids=lambda value: type(value).__name__)
async def test_a_grpc_error_says_whether_a_repeat_can_help(
    service: InferenceService,
    denoiser: ContextDenoiser,
    workers: LocalWorkers,
    error: Exception,
    after_s: float | None,
) -> None:
    workers.faults = three_times(error)
    async with (
        serving(service, denoiser, "127.0.0.1:0", frozenset(), max_message_bytes=100_000) as port,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        stub = InferenceStub(channel)  # type: ignore[no-untyped-call]
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await stub.Generate(pb.GenerateRequest(text="a"))

    trailer = dict(failure.value.trailing_metadata() or ())
    assert trailer["grpc-retry-pushback-ms"] == ("-1" if after_s is None else f"{1000 * after_s:.0f}")


def test_every_error_of_a_request_is_among_these() -> None:
    names = {
        name for name, kind in vars(cluster_errors).items() if inspect.isclass(kind) and issubclass(kind, ClusterError)
    }
    tested = {type(error).__name__ for error, _ in ALL}
    assert names - OF_START <= tested
    assert {kind.__name__ for kind, _ in TABLE} - {"WorkerError"} <= tested


@pytest.mark.parametrize(("error", "tries"), [(RequestTimeoutError("late"), 1), (OverloadedError("full"), 2)])
def test_openais_client_repeats_only_what_can_help(
    client: TestClient, workers: LocalWorkers, error: Exception, tries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)
    workers.faults = [Fault(error)]
    asking = openai.OpenAI(base_url="http://testserver/v1", api_key="none", http_client=client, max_retries=2)

    with suppress(openai.APIStatusError):
        asking.chat.completions.create(model="random", **TALK)

    assert len(workers.requests) == tries


@pytest.mark.parametrize(
    ("error", "backoff", "tries"),
    [(RequestTimeoutError("late"), "0.01s", 1), (OverloadedError("full", retry_after_s=0.05), "60s", 2)],
)
async def test_grpcs_own_retries_go_by_the_server_and_not_by_their_backoff(
    service: InferenceService,
    denoiser: ContextDenoiser,
    workers: LocalWorkers,
    error: Exception,
    backoff: str,
    tries: int,
) -> None:
    policy = {
        "maxAttempts": 4,
        "initialBackoff": backoff,
        "maxBackoff": backoff,
        "backoffMultiplier": 1,
        "retryableStatusCodes": ["DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"],
    }
    config = json.dumps({"methodConfig": [{"name": [{}], "retryPolicy": policy}]})
    workers.faults = [Fault(error)]
    async with (
        serving(service, denoiser, "127.0.0.1:0", frozenset(), max_message_bytes=100_000) as port,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.service_config", config)]) as channel,
    ):
        stub = InferenceStub(channel)  # type: ignore[no-untyped-call]
        with suppress(grpc.aio.AioRpcError):
            await stub.Generate(pb.GenerateRequest(text="a"), timeout=30)

    assert len(workers.requests) == tries
