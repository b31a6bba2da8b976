"""Every request leaves one line and one count, whatever became of it, and none of its text or keys."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import pytest
from starlette.types import Message

from cache_service.logs import FIELDS, OURS, JsonFormatter, LogsConfig, configure_logs
from cluster.errors import ReplicaLostError
from cluster.generation.answer import InferenceService
from cluster.generation.contexts.denoising import ContextDenoiser
from cluster.ingress.access import AccessLog
from cluster.ingress.grpc.server import serving
from cluster.metrics import IngressMetrics
from protos import inference_v1_pb2 as pb
from protos.inference_v1_pb2_grpc import InferenceStub
from tests.support.waiting import until
from tests.unit.cluster.local import Connect, Fault, LocalWorkers

CHAT = "/v1/chat/completions"
GENERATE = "/palimpsest.inference.v1.Inference/Generate"
TALK: dict[str, Any] = {"messages": [{"role": "user", "content": "How old is Mira?"}]}
SECRET = "sk-very-secret"

Lines = list[dict[str, Any]]


@pytest.fixture
def restored_logging() -> Iterator[None]:
    """Restore what `configure_logs` changes."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name in OURS:
        logging.getLogger(name).setLevel(logging.NOTSET)


def read(caplog: pytest.LogCaptureFixture) -> Lines:
    return [getattr(record, FIELDS) for record in caplog.records if record.name == "palimpsest.access"]


def count(metrics: IngressMetrics, **labels: str) -> float:
    return metrics.registry.get_sample_value("palimpsest_responses_total", labels) or 0.0


@pytest.mark.parametrize(
    ("method", "path", "content", "endpoint", "status", "reason"),
    [
        ("POST", CHAT, json.dumps(TALK), CHAT, 200, "ok"),
        ("POST", CHAT, "{", CHAT, 400, "invalid_request_error"),
        ("POST", CHAT, json.dumps(TALK | {"tool": 1}), CHAT, 400, "invalid_request_error"),
        ("POST", CHAT, json.dumps(TALK | {"model": "gpt"}), CHAT, 404, "model_not_found"),
        ("POST", CHAT, "x" * 20_000, CHAT, 413, "request_entity_too_large"),
        ("GET", CHAT, "", CHAT, 405, "method_not_allowed"),
        ("GET", "/nothing/at/all", "", "unmatched", 404, "not_found"),
        ("GET", "/v1/contexts/ctx-1", "", "/v1/contexts/{context_id}", 503, "contexts_unavailable"),
        ("GET", "/v1/contexts?limit=&after=", "", "/v1/contexts", 400, "invalid_request_error"),
        ("GET", "/health", "", "/health", 200, "ok"),
    ],
)
def test_every_http_request_leaves_a_line_and_a_count(
    connect: Connect,
    metrics: IngressMetrics,
    caplog: pytest.LogCaptureFixture,
    method: str,
    path: str,
    content: str,
    endpoint: str,
    status: int,
    reason: str,
) -> None:
    caplog.set_level(logging.DEBUG, "palimpsest")
    headers = {"content-type": "application/json", "authorization": f"Bearer {SECRET}", "x-request-id": "mine"}
    response = connect().request(method, path, content=content.encode(), headers=headers)

    [line] = read(caplog)
    assert (response.status_code, line["status"], line["reason"]) == (status, status, reason)
    assert (line["method"], line["path"]) == (method, path.partition("?")[0])
    assert line["request_id"].startswith("mine")
    assert line["tenant"] not in {"-", SECRET}
    assert count(metrics, transport="http", endpoint=endpoint, status=str(status), reason=reason) == 1
    assert SECRET not in caplog.text
    assert "Mira" not in caplog.text


def test_a_missing_key_is_counted_as_such(connect: Connect, metrics: IngressMetrics) -> None:
    connect(frozenset({"right"})).post(CHAT, json=TALK)

    assert count(metrics, transport="http", endpoint=CHAT, status="401", reason="invalid_api_key") == 1


def test_a_fault_of_the_server_is_counted_as_such(
    connect: Connect, workers: LocalWorkers, metrics: IngressMetrics
) -> None:
    workers.faults = [Fault(RuntimeError("a bug"))]
    assert connect().post(CHAT, json=TALK).status_code == 500

    assert count(metrics, transport="http", endpoint=CHAT, status="500", reason="internal_error") == 1


def test_an_error_in_the_middle_of_a_stream_is_the_reason(
    connect: Connect, workers: LocalWorkers, metrics: IngressMetrics
) -> None:
    workers.faults = [Fault(ReplicaLostError("gone"), after=2)]
    asked = TALK | {"stream": True, "diffusion": {"steps": 16, "block_length": 4}}
    connect().post(CHAT, json=asked)

    assert count(metrics, transport="http", endpoint=CHAT, status="200", reason="replica_lost") == 1


def test_a_path_cannot_forge_or_colour_a_line(connect: Connect, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "palimpsest")
    connect().get("/a%0AINFO%1b[31m" + "x" * 1000)

    [line] = read(caplog)
    assert line["path"].startswith("/a?INFO?[31mxxx")
    assert len(line["path"]) == 200


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_counts_as_499(
    connect: Connect, workers: LocalWorkers, metrics: IngressMetrics, stream: bool
) -> None:
    workers.faults = [Fault()]
    app: Any = connect().app
    started = asyncio.Event()
    messages = [{"type": "http.request", "body": json.dumps(TALK | {"stream": stream}).encode()}]

    async def receive() -> Message:
        if messages:
            return messages.pop()
        started.set()
        await asyncio.Event().wait()
        raise AssertionError

    async def send(_message: Message) -> None:
        pass

    serving_task = asyncio.create_task(app(scope_of(), receive, send))
    await until(lambda: workers.requests)
    serving_task.cancel()  # as Serve does when its client has gone
    with pytest.raises(asyncio.CancelledError):
        await serving_task

    assert count(metrics, transport="http", endpoint=CHAT, status="499", reason="client_left") == 1


def scope_of() -> dict[str, Any]:
    headers = [(b"content-type", b"application/json")]
    path = {"path": CHAT, "raw_path": CHAT.encode(), "query_string": b"", "root_path": ""}
    return {"type": "http", "http_version": "1.1", "method": "POST", "scheme": "http", "headers": headers, **path}


@pytest.fixture
async def channel(
    service: InferenceService, denoiser: ContextDenoiser, access: AccessLog
) -> AsyncIterator[grpc.aio.Channel]:
    keys = frozenset({SECRET})
    async with (
        serving(service, denoiser, "127.0.0.1:0", keys, max_message_bytes=10_000, access=access) as port,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        yield channel


@pytest.mark.parametrize(
    ("method", "message", "key", "endpoint", "status", "reason"),
    [
        (GENERATE, pb.GenerateRequest(text="Mira").SerializeToString(), SECRET, GENERATE, "OK", "ok"),
        (GENERATE, b"", SECRET, GENERATE, "INVALID_ARGUMENT", "invalid_request_error"),
        (GENERATE, b"\xff\xff", SECRET, GENERATE, "INVALID_ARGUMENT", "invalid_request_error"),
        (GENERATE, b"x" * 10_001, SECRET, GENERATE, "RESOURCE_EXHAUSTED", "request_entity_too_large"),
        (GENERATE, b"", "wrong", GENERATE, "UNAUTHENTICATED", "invalid_api_key"),
        ("/palimpsest.inference.v1.Inference/Nothing", b"", SECRET, "unmatched", "UNIMPLEMENTED", "unknown_method"),
    ],
)
async def test_every_call_leaves_a_line_and_a_count(
    channel: grpc.aio.Channel,
    metrics: IngressMetrics,
    caplog: pytest.LogCaptureFixture,
    method: str,
    message: bytes,
    key: str,
    endpoint: str,
    status: str,
    reason: str,
) -> None:
    caplog.set_level(logging.INFO, "palimpsest")
    metadata = (("authorization", f"Bearer {key}"), ("x-request-id", "mine"))
    call = channel.unary_unary(method)(message, metadata=metadata)
    code = await call.code()

    [line] = read(caplog)
    assert (code.name, line["status"], line["reason"], line["path"]) == (status, status, reason, method)
    assert count(metrics, transport="grpc", endpoint=endpoint, status=status, reason=reason) == 1
    assert key not in caplog.text
    assert "Mira" not in caplog.text


async def test_a_client_that_leaves_before_its_message_counts(
    channel: grpc.aio.Channel, metrics: IngressMetrics
) -> None:
    call = channel.stream_unary(GENERATE)()  # on the wire the same as a call whose message has not come yet
    await call.wait_for_connection()
    await until(lambda: call.cancel() or counts_of(metrics, "CANCELLED"))


async def test_a_cancelled_call_and_a_deadline_are_distinguished(
    channel: grpc.aio.Channel, workers: LocalWorkers, metrics: IngressMetrics
) -> None:
    workers.faults = [Fault(), Fault()]
    stub: Any = InferenceStub(channel)  # type: ignore[no-untyped-call]
    metadata = (("authorization", f"Bearer {SECRET}"),)
    call = stub.Generate(pb.GenerateRequest(text="a"), metadata=metadata)
    await until(lambda: workers.requests)
    call.cancel()
    with pytest.raises(grpc.aio.AioRpcError):
        await stub.Generate(pb.GenerateRequest(text="a"), metadata=metadata, timeout=4.0)

    await until(
        lambda: counts_of(metrics, "CANCELLED") and counts_of(metrics, "DEADLINE_EXCEEDED"),
        10.0,
        lambda: str(metrics.responses.collect()),
    )


def counts_of(metrics: IngressMetrics, status: str) -> float:
    samples = (sample for family in metrics.responses.collect() for sample in family.samples)
    return sum(sample.value for sample in samples if sample.labels.get("status") == status)


def test_lines_are_json_objects_if_that_is_configured(capsys: pytest.CaptureFixture[str]) -> None:
    record = logging.LogRecord("palimpsest.access", logging.INFO, "", 0, "%(a)s", ({"a": 1},), None)
    setattr(record, FIELDS, {"a": 1})
    line = json.loads(JsonFormatter().format(record))

    assert (line["level"], line["logger"], line["message"], line["a"]) == ("INFO", "palimpsest.access", "1", 1)
    assert line["time"].endswith("Z")


@pytest.mark.parametrize(("level", "shown"), [("INFO", True), ("WARNING", False)])
def test_the_level_and_format_are_configurable(
    capsys: pytest.CaptureFixture[str], level: Any, shown: bool, restored_logging: None
) -> None:
    configure_logs(LogsConfig(level=level, format="json"))
    logging.getLogger("palimpsest.access").info("one")
    logging.getLogger("another.library").info("noise")

    written = capsys.readouterr().err.splitlines()
    assert [json.loads(line)["message"] for line in written] == (["one"] if shown else [])
