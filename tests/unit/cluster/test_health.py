"""Health says what is missing while requests are still answered."""

from __future__ import annotations

from fastapi.testclient import TestClient

from cache_service.client.contact import WatchContact


def test_health_is_degraded_without_the_cache_service(client: TestClient, contact: WatchContact) -> None:
    assert client.get("/health").json() == {"status": "ok"}

    contact.record_failure(ConnectionError("connection refused"))
    response = client.get("/health")

    assert (response.status_code, response.json()["status"]) == (200, "degraded")
    assert "connection refused" in response.json()["reason"]
    assert "requests are answered without it" in response.json()["reason"]

    contact.record_message()
    assert client.get("/health").json() == {"status": "ok"}
