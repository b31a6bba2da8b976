"""Calls while the cache service is away."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from cache_service.testing.processes import ServiceProcess

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "Where does Mira live?"}], "max_tokens": 4}


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v1/contexts", {"text": "x"}),
        ("GET", "/v1/contexts", None),
        ("GET", "/v1/contexts/ctx-1", None),
        ("PATCH", "/v1/contexts/ctx-1", {"text": "x", "expected_epoch": 0}),
        ("DELETE", "/v1/contexts/ctx-1", None),
        ("POST", "/v1/contexts/ctx-1/denoise", {}),
        ("POST", "/v1/chat/completions", CHAT | {"context": {"id": "ctx-1"}}),
        ("POST", "/v1/chat/completions", CHAT | {"context": {"id": "ctx-1"}, "stream": True}),
    ],
)
def test_calls_about_contexts_report_that_the_service_is_away(
    client: TestClient, method: str, path: str, body: dict[str, Any] | None
) -> None:
    with client:
        response = client.request(method, path, json=body)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (503, "contexts_unavailable")
    assert "cache_service.host" in error["message"]


def test_everything_else_is_served(client: TestClient) -> None:
    assert client.post("/v1/chat/completions", json=CHAT).status_code == 200


class TestRestart:
    """Kills the service between two calls, and starts it again while the second one waits."""

    @pytest.fixture
    def cache_process(self, tmp_path: Path) -> Iterator[ServiceProcess]:
        with ServiceProcess(tmp_path) as process:
            yield process

    @pytest.fixture
    def cache_target(self, cache_process: ServiceProcess) -> str:
        return cache_process.target

    @pytest.fixture
    def contexts_patience_s(self) -> float:
        return 60.0

    @pytest.mark.parametrize(
        ("method", "path", "body", "status"),
        [
            ("POST", "/v1/contexts", {"text": "x"}, 201),
            ("GET", "/v1/contexts", None, 200),
            ("GET", "/v1/contexts/ctx-1", None, 404),
        ],
    )
    def test_a_call_made_meanwhile_is_answered(
        self,
        client: TestClient,
        cache_process: ServiceProcess,
        method: str,
        path: str,
        body: dict[str, Any] | None,
        status: int,
    ) -> None:
        with client, ThreadPoolExecutor() as pool:
            assert client.post("/v1/contexts", json={"text": "x"}).status_code == 201
            cache_process.kill()
            call = pool.submit(client.request, method, path, json=body)
            cache_process.start()
            assert call.result().status_code == status
