"""Bodies as the network brings them: compressed, damaged, or hardly JSON."""

from __future__ import annotations

import gzip
import json
import time
import zlib
from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient

from cluster.config import HttpConfig
from tests.unit.cluster.local import Connect, LocalWorkers
from workers.api import PARAMETERS
from workers.parameter import Parameter

CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {"messages": [{"role": "user", "content": "How old is Mira?"}], "max_tokens": 4}
PLAIN = json.dumps(BODY).encode()
LIMIT = 10_000
JSON = {"content-type": "application/json"}


def raw_deflate(content: bytes) -> bytes:
    encoder = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return encoder.compress(content) + encoder.flush()


@pytest.mark.parametrize(
    ("encoding", "encode"),
    [("gzip", gzip.compress), ("GZIP", gzip.compress), ("deflate", zlib.compress), ("deflate", raw_deflate)],
)
def test_a_compressed_body_is_decoded_within_the_limit(
    client: TestClient, workers: LocalWorkers, encoding: str, encode: Callable[[bytes], bytes]
) -> None:
    headers = JSON | {"content-encoding": encoding}
    short = client.post(CHAT, content=encode(PLAIN), headers=headers)
    full = client.post(CHAT, content=encode(PLAIN + b" " * (LIMIT - len(PLAIN))), headers=headers)
    bomb = encode(PLAIN + b" " * 5_000_000)
    long = client.post(CHAT, content=bomb, headers=headers)
    cut = client.post(CHAT, content=encode(PLAIN)[:-9], headers=headers)
    garbage = client.post(CHAT, content=b"\x1f\x8b nonsense", headers=headers)

    assert len(bomb) < LIMIT
    assert (short.status_code, full.status_code) == (200, 200)
    assert (long.status_code, long.json()["error"]["type"]) == (413, "invalid_request_error")
    assert "max_body_bytes" in long.json()["error"]["message"]
    for damaged in (cut, garbage):
        assert (damaged.status_code, "decoded" in damaged.json()["error"]["message"]) == (400, True)
    assert len(workers.requests) == 2


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip"])
def test_another_content_encoding_is_refused(client: TestClient, encoding: str) -> None:
    response = client.post(CHAT, content=PLAIN, headers=JSON | {"content-encoding": encoding})

    assert (response.status_code, response.json()["error"]["code"]) == (415, "unsupported_media_type")
    assert encoding in response.json()["error"]["message"]
    assert response.headers["accept-encoding"] == "gzip, deflate"


@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/v1/contexts"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "JSON object"),
        (b"  ", "isn't valid JSON"),
        (b"5", "JSON object"),
        (b'{"model": "a",}', "isn't valid JSON"),
        (b'{"model": "a"} x', "isn't valid JSON"),
        ('{"model": "Zürich"}'.encode("latin-1"), "UTF-8"),
        (b'{"model": "\xed\xa0\x80"}', "UTF-8"),
        (b'{"temperature": NaN}', "NaN"),
        (b'{"temperature": -Infinity}', "Infinity"),
        (b'{"seed": ' + b"9" * 5_000 + b"}", "too long"),
        (b'{"metadata": ' + b"[" * 4_000 + b"]" * 4_000 + b"}", "nested"),
        (b'{"metadata": ' + b'{"a":' * 1_500 + b"1" + b"}" * 1_501, "nested"),
        (b'{"model": "a", "model": "b"}', "'model' twice"),
        (b'{"diffusion": {"steps": 1, "steps": 2}}', "'steps' twice"),
        (b'{"\\ud800": 1, "model": "random"}', "half a character"),
    ],
)
def test_a_body_that_is_hardly_json_is_refused_with_what_is_wrong(
    client: TestClient, path: str, content: bytes, words: str
) -> None:
    response = client.post(path, content=content, headers=JSON)

    error = response.json()["error"]
    assert (response.status_code, error["type"]) == (400, "invalid_request_error")
    assert words in error["message"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ('"temperature": 1e999', "temperature"),
        (f'"temperature": {10**400}', "temperature"),
        (f'"max_tokens": {10**400}', "max_tokens"),
        (f'"diffusion": {{"block_length": 2, "steps": {10**400}}}', "diffusion.steps"),
        ('"diffusion": {"unmasking": "factor", "factor": 1e999}', "diffusion.factor"),
        (f'"logit_bias": {{"{10**30}": 1}}', "logit_bias"),
        ('"logit_bias": {"5": 1e999}', "logit_bias.5"),
        ('"temperature": "0.5"', "temperature"),
        ('"temperature": true', "temperature"),
        ('"seed": 1.5', "seed"),
        ('"max_tokens": 0', "max_tokens"),
        ('"max_tokens": -1', "max_tokens"),
        ('"diffusion": {"steps": true}', "diffusion.steps"),
        ('"diffusion": {"guidance": "1"}', "diffusion.guidance"),
    ],
)
def test_a_number_that_cannot_be_honoured_is_refused_by_its_path(client: TestClient, fields: str, param: str) -> None:
    response = client.post("/v1/completions", content=f'{{"prompt": "Mira", {fields}}}', headers=JSON)

    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize("number", [1 << 31, 1 << 63, 10**30], ids=["31 bits", "63 bits", "100 bits"])
@pytest.mark.parametrize("parameter", [each for each in PARAMETERS if each.bounds], ids=lambda each: each.name)
def test_a_huge_number_is_honoured_or_refused(client: TestClient, parameter: Parameter, number: int) -> None:
    name, value = parameter.client_name, {"5": number} if parameter.name == "logit_bias" else number
    more = {name: value} if parameter.is_openai else {"diffusion": {name: value}}
    response = client.post("/v1/completions", json={"prompt": "Mira", "temperature": 1, "max_tokens": 4} | more)

    assert response.status_code in {200, 400}, response.text


@pytest.mark.parametrize("number", [0, -1, 1025])
def test_a_refused_canvas_names_the_limit(client: TestClient, number: int) -> None:
    body = {"prompt": "Mira", "max_tokens": number}
    message = client.post("/v1/completions", json=body).json()["error"]["message"]

    assert ("1024" if number > 0 else "greater than or equal to 1") in message


@pytest.mark.parametrize("prompts", [["a", "b"], [[7], [8]]])
def test_several_prompts_are_refused(client: TestClient, prompts: list[Any]) -> None:
    error = client.post("/v1/completions", json={"prompt": prompts}).json()["error"]

    assert (error["param"], "takes one prompt" in error["message"]) == ("prompt", True)


def test_a_byte_order_mark_is_no_fault(client: TestClient) -> None:
    assert client.post(CHAT, content=b"\xef\xbb\xbf" + PLAIN, headers=JSON).status_code == 200


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "application/vnd.api+json"])
def test_a_content_type_may_have_parameters_and_suffixes(client: TestClient, content_type: str) -> None:
    assert client.post(CHAT, content=PLAIN, headers={"content-type": content_type}).status_code == 200


@pytest.mark.parametrize(
    "content",
    [
        '{"prompt": [' + "{}," * 120_000 + "{}]}",
        '{"prompt": [' + "[]," * 120_000 + "5]}",
        '{"prompt": "x", "temperature": 0.' + "1" * 900_000 + "}",
        '{"prompt": "x", ' + ",".join(f'"f{n}": 1' for n in range(80_000)) + "}",
        '{"prompt": "x", "logit_bias": {' + ",".join(f'"{n}x": 1' for n in range(80_000)) + "}}",
        '{"prompt": "x", "logit_bias": {' + ",".join(f'"{n}": 101' for n in range(80_000)) + "}}",
        '{"prompt": "x", "stop": [' + '"",' * 120_000 + '""]}',
    ],
    ids=["objects", "lists", "digits", "fields", "names", "biases", "stops"],
)
def test_a_long_wrong_body_is_refused_at_once(connect: Connect, content: str) -> None:
    client = connect(max_body_bytes=1 << 20)
    began = time.process_time()
    response = client.post("/v1/completions", content=content, headers=JSON)

    assert response.status_code in {200, 400}
    assert time.process_time() - began < 2.0


@pytest.mark.parametrize("path", ["/", "/health", "/v1/models", "/v1/models/random", "/metrics"])
def test_head_is_answered_where_get_is(client: TestClient, path: str) -> None:
    assert client.head(path).status_code == client.get(path).status_code == 200
    assert client.head(CHAT).status_code == 405


def test_pages_of_configured_origins_may_call_the_api(connect: Connect) -> None:
    origin = {"origin": "https://chat.example.org"}
    asked = origin | {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    closed, client = connect(), connect(cors_origins=["https://chat.example.org"])

    preflight = client.options(CHAT, headers=asked)
    answers = [client.post(CHAT, json=BODY, headers=origin), client.post(CHAT, content=b"{", headers=origin | JSON)]
    foreign = client.post(CHAT, json=BODY, headers={"origin": "https://elsewhere.example.org"})

    assert preflight.status_code == 200
    assert "authorization" in preflight.headers["access-control-allow-headers"].lower()
    assert [answer.status_code for answer in answers] == [200, 400]
    allowed = [answer.headers["access-control-allow-origin"] for answer in (preflight, *answers)]
    assert set(allowed) == {"https://chat.example.org"}
    assert "x-should-retry" in answers[1].headers["access-control-expose-headers"]
    assert "access-control-allow-origin" not in foreign.headers
    assert "access-control-allow-origin" not in closed.post(CHAT, json=BODY, headers=origin).headers
    assert closed.options(CHAT, headers=asked).status_code == 405


@pytest.mark.parametrize("origin", ["example.org", "https://example.org/"])
def test_what_is_no_origin_is_refused(origin: str) -> None:
    with pytest.raises(ValueError, match=r"http\.cors_origins"):
        HttpConfig(cors_origins=(origin,))
