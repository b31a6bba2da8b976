"""Answer errors over HTTP with OpenAI's error object."""

from __future__ import annotations

import logging
import math
from http import HTTPStatus
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from grpc import StatusCode
from starlette.exceptions import HTTPException

from cluster.errors import RequestError
from cluster.ingress.access import note_reply
from cluster.ingress.errors import INTERNAL, Reply, Status, reply_to

logger = logging.getLogger(__name__)

SHOULD_RETRY = "x-should-retry"
"""The header by which OpenAI's clients decide whether to repeat a request; without it they repeat even a time-out."""
NO_OBJECT = {"missing", "model_attributes_type", "model_type", "dict_type"}
"""The error types that pydantic reports for a body that is empty or not an object."""


async def refuse(_request: Request, error: Exception) -> Response:
    """Answer a request with `error`."""
    reply = error_response(error)
    headers = dict(getattr(error, "headers", None) or {})
    headers[SHOULD_RETRY] = "false" if reply.retry_after_s is None else "true"
    if reply.retry_after_s is not None:
        headers["Retry-After"] = str(math.ceil(reply.retry_after_s))
    if reply.status.http == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(reply.body(), reply.status.http, headers)


def error_response(error: Exception) -> Reply:
    """Return the response to an error, and note it in the access log."""
    reply = _reply_to(error)
    note_reply(reply)
    return reply


def _reply_to(error: Exception) -> Reply:
    """Return the response to an error; the text of an internal error goes to the log instead."""
    match error:
        case RequestValidationError():
            return reply_to(request_error(error))
        case HTTPException(status_code=code, detail=detail):
            phrase = HTTPStatus(code).phrase.lower().replace(" ", "_")
            if code == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
                detail = "the body is too long: send less, or raise limits.max_body_bytes"
            return Reply(Status(code, StatusCode.UNKNOWN, "invalid_request_error", phrase), str(detail), code=phrase)
    reply = reply_to(error)
    if reply.status is INTERNAL:
        logger.error("a request failed", exc_info=error)
    return reply


def request_error(error: RequestValidationError) -> RequestError:
    """Return an error that names the faulty field of a body by its path, such as `messages.0.content`.

    Of several faults it names the most deeply nested one, and a wrong type only if there is no other fault: if a
    field has alternatives, that fault is in the one that the client meant.
    """
    faults = [(written_path(found, error.body), found) for found in error.errors()]
    path, first = max(faults, key=lambda fault: (len(fault[0]), not fault[1]["type"].endswith("_type")))
    if first["loc"] == ("body",) and first["type"] in NO_OBJECT:
        return RequestError("the body must be a JSON object, sent with Content-Type: application/json")
    param = ".".join(path) or None
    is_type = first["type"].endswith("_type")
    same = [fault for at, fault in faults if at == path and fault["type"].endswith("_type")] if is_type else [first]
    reason = ", or: ".join(dict.fromkeys(map(reason_of, same)))
    return RequestError(f"{param}: {reason}" if param else reason, param=param)


def reason_of(fault: Any) -> str:
    if fault["type"] == "extra_forbidden":
        return "there is no such field"
    return str(fault["msg"]).removeprefix("Value error, ")


def written_path(fault: Any, body: Any) -> list[str]:
    """Return the fields and indices that lead to a fault in what the client wrote.

    Pydantic's own path holds names of alternatives, too, which the body doesn't have.
    """
    source, *location = fault["loc"]
    if source != "body":
        return [str(part) for part in location]
    path: list[str] = []
    is_written = True
    for part in location:
        is_written = part in body if isinstance(body, dict) else isinstance(body, list) and part in range(len(body))
        if is_written:
            body = body[part]
            path.append(str(part))
    return path if is_written or fault["type"] != "missing" else [*path, str(location[-1])]
