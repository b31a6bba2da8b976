"""Streams and Serve's proxy in a running system: signs of life, lost workers, headers, and the exposition's formats."""

from __future__ import annotations

import http.client
import json
from contextlib import closing

import httpx2 as httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from tests.e2e.prompts import ENDLESS, chat, sheet
from tests.e2e.system import System
from tests.support.waiting import PATIENCE_S, eventually

CHAT = "/v1/chat/completions"
SLOW = {
    "max_tokens": 700,
    "diffusion": {"steps": 24, "block_length": 700, "min_tokens": 700, "policy": "none"},
}
"""A request of few passes, each of which takes long; the first token in order is committed after some of them."""


def running_on(system: System) -> list[str]:
    """Return the replicas that denoise a request now."""
    replicas = {
        sample.labels["replica"]
        for family in text_string_to_metric_families(openmetrics(system))
        for sample in family.samples
        if sample.name == "palimpsest_worker_running" and sample.value
    }
    return sorted(replicas)


def openmetrics(system: System) -> str:
    response = httpx.get(f"{system.url}/metrics", headers={"accept": "application/openmetrics-text"})
    assert response.headers["content-type"].startswith("application/openmetrics-text")
    return response.text


def test_a_stream_begins_long_before_its_first_text(system: System) -> None:
    """The whole answer is one block, whose first token is among the last to be committed in order."""
    body = {"messages": chat(sheet("Uma")), "stream": True, **ENDLESS}
    with httpx.stream("POST", system.url + CHAT, json=body, timeout=PATIENCE_S) as response:
        assert response.status_code == 200
        assert running_on(system)
    eventually(lambda: not running_on(system))


def test_a_stream_that_a_killed_worker_had_accepted_is_answered_by_another_one(system: System) -> None:
    body = {"messages": chat(sheet("Vera")), "stream": True, **SLOW}
    with httpx.stream("POST", system.url + CHAT, json=body, timeout=PATIENCE_S) as response:
        eventually(lambda: len(running_on(system)) == 1)
        [accepted_by] = running_on(system)
        system.worker(accepted_by).kill()
        *events, done = [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: ")]

    assert done == "[DONE]"
    assert json.loads(events[-1])["choices"][0]["finish_reason"] == "length"
    assert json.loads(events[-1])["diffusion"]["replica"] != accepted_by
    eventually(lambda: len(system.processes("ServeReplica:palimpsest:DiffusionWorker")) == 2)


@pytest.mark.parametrize("stream", [False, True])
def test_no_header_of_a_client_cuts_its_request(system: System, stream: bool) -> None:
    body = {"messages": chat(sheet("Wanda")), "max_tokens": 16, "stream": stream}
    response = system.post(CHAT, body, **{"x-request-timeout-seconds": "0.001", "x-session-id": "mine"})

    assert response.status_code == 200
    assert "finish_reason" in response.text


@pytest.mark.parametrize(
    ("name", "value", "status"), [("x-request-id", b"\xff\xfe", 200), ("x-long", b"a" * (4 << 20), 431)]
)
def test_headers_that_serve_cannot_carry_get_an_answer_of_our_own(
    system: System, name: str, value: bytes, status: int
) -> None:
    with closing(http.client.HTTPConnection("127.0.0.1", system.http_port, timeout=PATIENCE_S)) as connection:
        connection.request("GET", "/v1/models", headers={name: value})
        response = connection.getresponse()
        body = json.loads(response.read())

    assert response.status == status
    assert ("data" if status == 200 else "error") in body


def test_the_exposition_of_the_running_system_is_valid_openmetrics(system: System) -> None:
    system.post(CHAT, {"messages": chat(sheet("Xenia")), "max_tokens": 4})
    names = {family.name for family in text_string_to_metric_families(openmetrics(system))}

    assert {"palimpsest_requests", "palimpsest_router_requests", "palimpsest_worker_requests"} <= names


def test_a_stream_whose_ingress_is_killed_ends_with_an_error_event(system: System) -> None:
    body = {"messages": chat(sheet("Yara")), "stream": True, **ENDLESS}
    with httpx.stream("POST", system.url + CHAT, json=body, timeout=PATIENCE_S) as response:
        [ingress] = system.processes("ServeReplica:palimpsest:Ingress")
        ingress.kill()
        events = [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: ")]

    assert json.loads(events[-1])["error"]["code"] == "replica_lost"
    eventually(lambda: system.get("/health").status_code == 200)
