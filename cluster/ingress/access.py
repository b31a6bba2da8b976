"""Write one line and count one response for each request, over HTTP and gRPC alike, whatever became of it.

A line has neither the query, nor a header or a body: they may hold secrets and prompts.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import dataclass, field

from cache_service.logs import FIELDS
from cluster.ingress.errors import Reply
from cluster.ingress.keys import keys_of, tenant_of
from cluster.metrics import IngressMetrics

logger = logging.getLogger("palimpsest.access")

UNMATCHED = "unmatched"
"""The endpoint of requests that match no route, in the counter; raw paths would be endlessly many."""
PROBES = frozenset({"/health", "/metrics"})
"""Endpoints that machines ask periodically: their lines are at level DEBUG if nothing is wrong."""
OK, CLIENT_LEFT = "ok", "client_left"
LINE = "%(method)s %(path)s %(status)s %(ms)s ms request_id=%(request_id)s tenant=%(tenant)s reason=%(reason)s"
SHOWN_LENGTH = 200
TENANT_LENGTH = 8
"""Number of characters of a tenant's id in a line."""


@dataclass
class Exchange:
    """Describes one request, from its arrival to its response."""

    log: AccessLog
    transport: str
    method: str
    path: str
    request_id: str = "-"
    tenant: str = "-"
    reason: str | None = None
    """The reason why it was refused or failed, if it was."""
    refusal: Exception | None = None
    """A fault of the message itself, found before the call began."""
    is_ended: bool = False
    start: float = field(default_factory=time.perf_counter)

    def end(self, endpoint: str, status: int | str, reason: str) -> None:
        """Count and log a response, or the departure of the client, once. `endpoint` is the route's template."""
        if not self.is_ended:
            self.is_ended = True
            self.log.write(self, endpoint, status, reason)


_CURRENT: ContextVar[Exchange | None] = ContextVar("exchange", default=None)


def begin(exchange: Exchange) -> None:
    """Make this the exchange that the current task serves."""
    _CURRENT.set(exchange)


def current_exchange() -> Exchange | None:
    """Return the exchange that the current task serves."""
    return _CURRENT.get()


def note_request_id(request_id: str) -> None:
    """Note the id under which other log lines speak of the current request."""
    if (exchange := _CURRENT.get()) is not None:
        exchange.request_id = printable(request_id)


def note_reply(reply: Reply) -> None:
    """Note why the current request is refused or fails."""
    if (exchange := _CURRENT.get()) is not None:
        exchange.reason = reply.code or reply.status.kind


class AccessLog:
    """Writes the lines, and counts the responses."""

    def __init__(self, metrics: IngressMetrics, *, writes_lines: bool = True) -> None:
        self._metrics, self._writes_lines = metrics, writes_lines

    def write(self, exchange: Exchange, endpoint: str, status: int | str, reason: str) -> None:
        elapsed_ms = (time.perf_counter() - exchange.start) * 1000
        self._metrics.responses.labels(exchange.transport, endpoint, str(status), reason).inc()
        level = logging.DEBUG if endpoint in PROBES and reason == OK else logging.INFO
        if self._writes_lines:
            fields = {
                "method": exchange.method,
                "path": printable(exchange.path),
                "status": status,
                "ms": round(elapsed_ms, 1),
                "request_id": exchange.request_id,
                "tenant": exchange.tenant,
                "reason": reason,
            }
            logger.log(level, LINE, fields, extra={FIELDS: fields})


def presented_tenant(headers: Iterable[tuple[str, str | bytes]]) -> str:
    """Return the beginning of the id of the tenant to whom the first API key of a request belongs, valid or not."""
    return next((tenant_of(key)[:TENANT_LENGTH] for key in keys_of(headers)), "-")


def printable(text: str) -> str:
    """Return the beginning of a client's text, with `?` for what could break a line or colour it."""
    return "".join(char if char.isprintable() and not char.isspace() else "?" for char in text[:SHOWN_LENGTH])
