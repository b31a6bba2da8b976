"""Calls about shared contexts, and the bodies that tests send."""

from __future__ import annotations

from typing import Any

from fastapi.testclient import TestClient

URL, CHAT = "/v1/contexts", "/v1/chat/completions"
SHEET = "Mira is 34, lives in Oslo and has a fox."
QUESTION = {"role": "user", "content": "Where does Mira live?"}
ASK: dict[str, Any] = {"messages": [QUESTION], "max_tokens": 8}
LIVES_IN = {"type": "text", "text": "Mira lives in"}
HOLE = {"type": "mask", "length": 8}
COMMITS = "palimpsest_context_commits_total"
NONE = {"diffusion": {"policy": "none"}}


def created(client: TestClient, **body: Any) -> dict[str, Any]:
    response = client.post(URL, json=body)
    assert response.status_code == 201, response.text
    content: dict[str, Any] = response.json()
    return content


def of_turns(client: TestClient, content: Any = SHEET, **more: Any) -> dict[str, Any]:
    return created(client, messages=[{"role": "system", "content": content}], **more)


def change(client: TestClient, context: dict[str, Any], **body: Any) -> Any:
    return client.patch(f"{URL}/{context['id']}", json={"expected_epoch": context["epoch"]} | body)


def failed(response: Any) -> tuple[int, str, str]:
    error = response.json()["error"]
    return response.status_code, error["code"], error["param"]
