"""The guard around Serve's proxy, which is played by applications that answer as Serve does."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fastapi.testclient import TestClient
from ray.serve._private.http_util import (
    convert_object_to_asgi_messages,
    parse_disconnect_disabled_header,
    parse_request_timeout_header,
    parse_session_id_header,
)
from starlette.types import ASGIApp, Receive, Scope, Send

from cluster.ingress.http.proxy import MAX_HEADER_BYTES, ProxyGuard
from tests.unit.cluster.local import Connect

ERROR_FIELDS = {"message", "type", "param", "code"}


def guarded(app: ASGIApp) -> TestClient:
    return TestClient(ProxyGuard(app), raise_server_exceptions=False)


class Recorder:
    """Answers 200 and keeps the headers that reach it."""

    def __init__(self) -> None:
        self.headers: dict[bytes, bytes] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.headers = dict(scope["headers"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"done"})


def test_no_header_of_a_client_steers_serve() -> None:
    app = Recorder()
    sent = {
        "X-Request-Timeout-Seconds": "0.01",
        "x_request_timeout_seconds": "0.01",
        "X-Request-Disconnect-Disabled": "?1",
        "X-Session-Id": "mine",
        "serve_multiplexed_model_id": "other",
        "Serve-Multiplexed-Model-Id": "other",
        "X-Serve-Router-Target": "r1",
        "X-Request-Id": "mine",
        "Authorization": "Bearer key",
    }
    assert guarded(app).get("/", headers=sent).text == "done"

    assert app.headers[b"x-request-id"] == b"mine"
    assert app.headers[b"authorization"] == b"Bearer key"
    assert parse_request_timeout_header(app.headers, None) is None
    assert not parse_disconnect_disabled_header(app.headers)
    assert parse_session_id_header(app.headers) == ""
    assert not [name for name in app.headers if b"serve" in name or b"timeout" in name]


@pytest.mark.parametrize("request_id", [b"\xff\xfe", "m\N{LATIN SMALL LETTER E WITH ACUTE}".encode(), b""])
def test_a_request_id_that_serve_cannot_read_is_left_to_serve(request_id: bytes) -> None:
    app = Recorder()
    assert guarded(app).get("/", headers=[(b"x-request-id", request_id)]).status_code == 200
    assert b"x-request-id" not in app.headers


@pytest.mark.parametrize("where", ["header", "many", "query"])
def test_headers_are_bounded(where: str) -> None:
    app = Recorder()
    headers = {"header": {"x-long": "a" * MAX_HEADER_BYTES}, "many": {f"x-{number}": "a" * 99 for number in range(999)}}
    path = "/?q=" + "a" * MAX_HEADER_BYTES if where == "query" else "/"

    response = guarded(app).get(path, headers=headers.get(where, {}))

    assert (response.status_code, app.headers) == (431, {})
    assert set(response.json()["error"]) == ERROR_FIELDS
    assert response.headers["x-should-retry"] == "false"
    assert guarded(app).get("/", headers={"x-long": "a" * (MAX_HEADER_BYTES // 2)}).status_code == 200


@pytest.mark.parametrize(
    ("status", "expected", "code", "can_retry"),
    [
        (404, 503, "not_ready", "true"),
        (408, 408, "request_timeout", "false"),
        (429, 429, "overloaded", "true"),
        (503, 503, "not_ready", "true"),
        (400, 400, "bad_request", "false"),
        (500, 500, "internal_error", "false"),
    ],
)
def test_serves_own_errors_have_our_shape(status: int, expected: int, code: str, can_retry: str) -> None:
    async def serve(_scope: Scope, _receive: Receive, send: Send) -> None:
        start, *rest = convert_object_to_asgi_messages("in Serve's own words", status_code=status)
        await send({**start, "headers": [*start["headers"], (b"x-request-id", b"mine")]})
        for message in rest:
            await send(message)

    response = guarded(serve).get("/v1/models")

    assert (response.status_code, response.json()["error"]["code"]) == (expected, code)
    assert set(response.json()["error"]) == ERROR_FIELDS
    assert (response.headers["x-should-retry"], response.headers["x-request-id"]) == (can_retry, "mine")


@pytest.mark.parametrize("raised", [None, RuntimeError("a header is too long for a message")])
def test_a_proxy_without_an_answer_is_a_lost_ingress(raised: Exception | None) -> None:
    async def serve(_scope: Scope, _receive: Receive, _send: Send) -> None:
        if raised:
            raise raised

    response = guarded(serve).get("/v1/models")

    assert (response.status_code, response.json()["error"]["code"]) == (503, "replica_lost")


def test_a_stream_that_breaks_off_ends_with_an_error_event() -> None:
    async def serve(_scope: Scope, _receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b'data: {"a": 1}\n\n', "more_body": True})

    first, last = guarded(serve).get("/").text.removesuffix("\n\n").split("\n\n")

    assert first == 'data: {"a": 1}'
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "replica_lost"


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/metrics", None),
        ("GET", "/v1/nothing", None),
        ("POST", "/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
        ("POST", "/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}], "stream": True}),
    ],
)
def test_the_applications_own_answers_pass_as_they_are(
    connect: Connect, method: str, path: str, body: dict[str, Any] | None
) -> None:
    app = connect().app
    plain, same = (TestClient(kind).request(method, path, json=body) for kind in (app, ProxyGuard(app)))

    assert (same.status_code, same.headers["content-type"]) == (plain.status_code, plain.headers["content-type"])
    assert len(same.text) > 0
