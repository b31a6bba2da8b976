"""Work that this router has sent and not seen finished, in tokens. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from cache_service.core.types import ReplicaId

EMA_DECAY = 0.95
"""Weight of the past in the running mean of a request's work."""
REPORT_LIFE_S = 1.0
"""For how long a replica's report counts. A request that ended while the report was under way is one too many in it."""


@dataclass(frozen=True)
class Work:
    """Of one request."""

    tokens: int
    expires_at: float
    """When it counts no more, even where nobody tells of its end."""


@dataclass(frozen=True)
class Report:
    """What a replica said of its load."""

    num_others: int
    """Requests that this router has not sent."""
    expires_at: float


class WorkLedger:
    """Open requests by replica. Other routers' requests are known only by number, and counted at the mean."""

    def __init__(self) -> None:
        self._open: dict[ReplicaId, dict[str, Work]] = {}
        self._reports: dict[ReplicaId, Report] = {}
        self._mean = 0.0

    def __repr__(self) -> str:
        return f"<WorkLedger [{sum(map(len, self._open.values()))} open requests on {len(self._open)} replicas]>"

    def open(self, request_id: str, replica: ReplicaId, tokens: int, expires_at: float) -> None:
        """The request's work lies on `replica`, and nowhere else, until it is closed, or that moment comes."""
        self.forget(request_id)
        self._open.setdefault(replica, {})[request_id] = Work(tokens, expires_at)
        self._mean = EMA_DECAY * self._mean + (1 - EMA_DECAY) * tokens if self._mean else float(tokens)

    def close(self, request_id: str, replica: ReplicaId) -> None:
        """Idempotent: a request that isn't open there is passed over."""
        requests = self._open.get(replica, {})
        requests.pop(request_id, None)
        if not requests:
            self._open.pop(replica, None)

    def forget(self, request_id: str) -> None:
        """Close it wherever it is open."""
        for replica in tuple(self._open):
            self.close(request_id, replica)

    def expire(self, now: float) -> None:
        """Close requests whose time has come, and drop reports that have grown old."""
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
        """The replica reports how many requests it works on, of all routers."""
        num_others = max(0, num_ongoing - len(self._open.get(replica, {})))
        self._reports[replica] = Report(num_others, now + REPORT_LIFE_S)

    def sent_tokens(self, replica: ReplicaId) -> int:
        """Tokens of this router's own work open on `replica`."""
        return sum(work.tokens for work in self._open.get(replica, {}).values())

    def queued_tokens(self, replica: ReplicaId) -> int:
        """Tokens of work open on `replica`, other routers' included as far as it has told of late."""
        num_others = self._reports[replica].num_others if replica in self._reports else 0
        return self.sent_tokens(replica) + round(num_others * self._mean)

    @property
    def replicas(self) -> tuple[ReplicaId, ...]:
        return tuple(self._open)
