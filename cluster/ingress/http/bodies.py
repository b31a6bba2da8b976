"""Read requests' bodies: compressed or not, strictly JSON, and no longer than the server allows."""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Any, NoReturn

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from cluster.errors import RequestError

ENCODINGS = ("gzip", "x-gzip", "deflate")
"""The content encodings that are decoded."""
ZLIB_OR_GZIP = zlib.MAX_WBITS | 32
RAW_DEFLATE = -zlib.MAX_WBITS
DEFLATE_METHOD, HEADER_MULTIPLE = 8, 31
"""The content of a zlib header: its first byte names the method, and its two bytes are a multiple of this."""


class BodyRoute(APIRoute):
    """Is a route whose bodies are decoded and parsed here. `max_body_size` stands in the application's state."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def read_and_handle(request: Request) -> Response:
            content = await request.body()
            encoding = request.headers.get("content-encoding", "identity").strip().lower()
            if content and encoding != "identity":
                content = decoded(content, encoding, request.app.state.max_body_size)
            return await handle(ReadRequest(request, content))

        return read_and_handle


class ReadRequest(Request):
    """Is a request whose body has been read. Raises RequestError for JSON that can't be parsed."""

    def __init__(self, request: Request, content: bytes) -> None:
        super().__init__(request.scope, request.receive)
        self._content = content
        self._parsed = parse_json(content) if content and is_json(request.headers.get("content-type", "")) else None

    async def body(self) -> bytes:
        return self._content

    async def json(self) -> Any:
        return self._parsed


def is_json(content_type: str) -> bool:
    kind = content_type.partition(";")[0].strip().lower()
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))


def decoded(content: bytes, encoding: str, max_size: int) -> bytes:
    """Return the decoded content, of which at most `max_size` bytes are ever made.

    Raises RequestError if it is damaged, and HTTPException if it is longer, or has another encoding.
    """
    if encoding not in ENCODINGS:
        raise HTTPException(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            f"the content encoding {encoding!r} isn't supported: send the body as gzip or deflate, or as it is",
            headers={"Accept-Encoding": "gzip, deflate"},
        )
    decoder = zlib.decompressobj(ZLIB_OR_GZIP if has_header(content) else RAW_DEFLATE)
    try:
        plain = decoder.decompress(content, max_size + 1)
    except zlib.error as error:
        raise RequestError(f"the body can't be decoded as {encoding}: {error}") from error
    if len(plain) > max_size:
        raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
    if not decoder.eof or decoder.unused_data:
        raise RequestError(f"the body can't be decoded as {encoding}: it is cut off, or goes on behind its end")
    return plain


def has_header(content: bytes) -> bool:
    """Return whether content begins as gzip or zlib do. Some clients send deflate without such a header."""
    is_zlib = content[0] & 15 == DEFLATE_METHOD and int.from_bytes(content[:2]) % HEADER_MULTIPLE == 0
    return is_zlib or content.startswith(b"\x1f\x8b")


def parse_json(content: bytes) -> Any:
    """Return the value that JSON text holds. Raises RequestError, also for what Python's parser would let pass."""
    try:
        text = content.decode(json.detect_encoding(content))
        return json.loads(text, object_pairs_hook=with_distinct_names, parse_constant=refuse_constant)
    except UnicodeDecodeError as error:
        raise RequestError(f"the body isn't valid JSON: it isn't encoded in UTF-8 at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise RequestError(f"the body isn't valid JSON: {error}") from error
    except ValueError as error:
        raise RequestError(f"the body holds a number that is too long: {error}") from error
    except RecursionError as error:
        raise RequestError("the body can't be read: its objects and arrays are nested too deeply") from error


def with_distinct_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object. Raises RequestError if it names a field twice: readers differ on which one counts."""
    found = dict(pairs)
    try:
        "".join(found).encode()
    except UnicodeEncodeError as error:
        raise RequestError("the body isn't valid JSON: an object's name holds half a character") from error
    if len(found) < len(pairs):
        [(twice, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise RequestError(f"the body isn't valid JSON: an object names {twice!r} twice")
    return found


def refuse_constant(name: str) -> NoReturn:
    raise RequestError(f"the body isn't valid JSON: {name} is no JSON number")
