"""Work that this router has sent and not seen finished, in tokens. Pure."""

from __future__ import annotations

from cache_service.types import ReplicaId

MEMORY = 0.95
"""Weight of the past in the running mean of a request's work."""


class WorkLedger:
    """Open requests by replica. Other routers' requests are known only by number, and counted at the mean."""

    def __init__(self) -> None:
        self._open: dict[ReplicaId, dict[str, int]] = {}
        self._mean = 0.0

    def __repr__(self) -> str:
        return f"<WorkLedger [{sum(map(len, self._open.values()))} open requests on {len(self._open)} replicas]>"

    def open(self, request_id: str, replica: ReplicaId, tokens: int) -> None:
        self._open.setdefault(replica, {})[request_id] = tokens
        self._mean = MEMORY * self._mean + (1 - MEMORY) * tokens if self._mean else float(tokens)

    def close(self, request_id: str, replica: ReplicaId) -> None:
        """Idempotent: a request that isn't open is passed over."""
        requests = self._open.get(replica, {})
        requests.pop(request_id, None)
        if not requests:
            self._open.pop(replica, None)

    def queued_tokens(self, replica: ReplicaId, num_ongoing: int | None) -> int:
        """Tokens of work open on `replica`, which holds `num_ongoing` requests in all (None: not known)."""
        mine = self._open.get(replica, {})
        others = max(0, (num_ongoing or 0) - len(mine))
        return sum(mine.values()) + round(others * self._mean)

    @property
    def replicas(self) -> tuple[ReplicaId, ...]:
        return tuple(self._open)
