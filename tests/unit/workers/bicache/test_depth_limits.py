"""The limits on the depth of reuse that replicas report."""

from __future__ import annotations

from cache_service.core.types import DepthLimit, PrefixKey
from workers.bicache.depth import DepthLimits

A, B = PrefixKey(b"a" * 20), PrefixKey(b"b" * 20)


def test_a_limit_only_falls_until_it_is_lifted() -> None:
    limits = DepthLimits(1)
    for key, depth in ((A, 3), (A, 5), (B, 2)):
        limits.record(DepthLimit(key, 60, depth, 1))
    assert [limits.depth(key, 60) for key in (A, B)] == [3, 2]
    limits.lift(A)
    assert [limits.depth(key, 60) for key in (A, B)] == [None, 2]
    limits.record(DepthLimit(A, 60, 5, 1))
    assert limits.depth(A, 60) == 5
