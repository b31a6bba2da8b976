"""Check the length of names and keys, which every watcher receives. Pure."""

from __future__ import annotations

from cache_service.core.types import PrefixKey, ReplicaId
from cache_service.errors import InvalidRequest

MAX_NAME_LENGTH = 1024
MAX_KEY_BYTES = 64


def require_name(replica: ReplicaId) -> None:
    """Raise InvalidRequest for a name that is empty or too long."""
    if not 0 < len(replica) <= MAX_NAME_LENGTH:
        raise InvalidRequest(f"replica needs 1 to {MAX_NAME_LENGTH} characters, got {len(replica)}")


def require_key(key: PrefixKey) -> None:
    """Raise InvalidRequest for a key that can't be a digest."""
    if not 0 < len(key) <= MAX_KEY_BYTES:
        raise InvalidRequest(f"key needs 1 to {MAX_KEY_BYTES} bytes, got {len(key)}")
