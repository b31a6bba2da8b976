"""Answer errors over HTTP with OpenAI's error object."""

from __future__ import annotations

import logging
import math
from http import HTTPStatus
from itertools import takewhile

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from grpc import StatusCode
from starlette.exceptions import HTTPException

from cluster.errors import RequestError
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
    first = max(error.errors(), key=lambda found: (len(found["loc"]), not found["type"].endswith("_type")))
    if first["loc"] == ("body",) and first["type"] in NO_OBJECT:
        return RequestError("the body must be a JSON object, sent with Content-Type: application/json")
    if first["type"] == "json_invalid":
        return RequestError(f"the body isn't valid JSON: {first['ctx']['error']}")
    path = [str(part) for part in first["loc"][1:]]
    param = ".".join(takewhile(is_field, path)) or None
    reason = first["msg"].removeprefix("Value error, ")
    return RequestError(f"{param}: {reason}" if param else reason, param=param)


def is_field(part: str) -> bool:
    """Return whether a part of an error's path is a field or an index, not the name of a type that pydantic tried."""
    return part.isdigit() or (part.isidentifier() and part not in {"str", "int"})
