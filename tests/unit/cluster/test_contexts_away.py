"""What holds while the cache service is away."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.testclient import TestClient

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
def test_what_needs_a_context_says_that_the_service_is_away(
    client: TestClient, method: str, path: str, body: dict[str, Any] | None
) -> None:
    with client:
        response = client.request(method, path, json=body)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (503, "contexts_unavailable")
    assert "cache_service.host" in error["message"]


def test_everything_else_is_served(client: TestClient) -> None:
    assert client.post("/v1/chat/completions", json=CHAT).status_code == 200
