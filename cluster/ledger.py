"""Count, in tokens, the unfinished work that this router has sent. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cache_service.core.types import ReplicaId

EMA_DECAY = 0.95
"""Weight of the past in the running mean of a request's work."""
REPORT_LIFE_S = 1.0
"""Seconds for which a replica's report counts. It may include requests that ended while it was being sent."""


@dataclass(frozen=True)
class Work:
    """Counts the tokens of one request."""

    tokens: int
    expires_at: float
    """The time from which it no longer counts, even if its end is never reported."""


@dataclass(frozen=True)
class LoadReport:
    """Holds a replica's latest report of its load."""

    num_others: int
    """Requests that other routers have sent."""
    expires_at: float


class WorkLedger:
    """Keeps the open requests by replica. Each request of another router counts as one of mean size."""

    def __init__(self) -> None:
        self._open: dict[ReplicaId, dict[str, Work]] = {}
        self._reports: dict[ReplicaId, LoadReport] = {}
        self._mean = 0.0

    def __repr__(self) -> str:
        return f"<WorkLedger [{sum(map(len, self._open.values()))} open requests on {len(self._open)} replicas]>"

    def open(self, request_id: str, replica: ReplicaId, tokens: int, expires_at: float) -> None:
        """Count the request's work on `replica`, and nowhere else, until it is closed or `expires_at` has come."""
        self.forget(request_id)
        self._open.setdefault(replica, {})[request_id] = Work(tokens, expires_at)
        self._mean = EMA_DECAY * self._mean + (1 - EMA_DECAY) * tokens if self._mean else float(tokens)

    def close(self, request_id: str, replica: ReplicaId) -> None:
        """Stop counting the request's work on `replica`. A request that isn't open there is ignored."""
        requests = self._open.get(replica, {})
        requests.pop(request_id, None)
        if not requests:
            self._open.pop(replica, None)

    def forget(self, request_id: str) -> None:
        """Close the request on every replica on which it is open."""
        for replica in tuple(self._open):
            self.close(request_id, replica)

    def expire(self, now: float) -> None:
        """Close requests that have expired, and drop reports that are too old."""
        late = [
            (name, replica)
            for replica, requests in self._open.items()
            for name, work in requests.items()
            if now >= work.expires_at
        ]
        for request_id, replica in late:
            self.close(request_id, replica)
        self._reports = {replica: report for replica, report in self._reports.items() if now < report.expires_at}

    def record_load(self, replica: ReplicaId, num_ongoing: int, now: float) -> None:
        """Record how many requests, of all routers, the replica works on."""
        num_others = max(0, num_ongoing - len(self._open.get(replica, {})))
        self._reports[replica] = LoadReport(num_others, now + REPORT_LIFE_S)

    def sent_tokens(self, replica: ReplicaId) -> int:
        """Return the tokens of this router's own work open on `replica`."""
        return sum(work.tokens for work in self._open.get(replica, {}).values())

    def unexpired_tokens(self, now: float) -> Mapping[ReplicaId, int]:
        """Return the tokens of this router's own work by replica, without what has expired since the last request."""
        return {
            replica: sum(work.tokens for work in tuple(requests.values()) if now < work.expires_at)
            for replica, requests in tuple(self._open.items())
        }

    def queued_tokens(self, replica: ReplicaId) -> int:
        """Return the tokens of all work open on `replica`, including other routers' if it was reported recently."""
        num_others = self._reports[replica].num_others if replica in self._reports else 0
        return self.sent_tokens(replica) + round(num_others * self._mean)

    @property
    def replicas(self) -> tuple[ReplicaId, ...]:
        """Return the replicas on which this router's own work is open."""
        return tuple(self._open)
