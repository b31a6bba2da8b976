"""The clients of the stack benchmark read everything that the server sends."""

from __future__ import annotations

import pytest

from benchmarks.clients import Address, clients
from benchmarks.stack import TRANSPORTS
from benchmarks.traffic import Traffic
from tests.e2e.system import System

pytestmark = pytest.mark.system

TRAFFIC = Traffic(
    streams=2, rounds=1, prefix=24, user=8, canvas=16, num_steps=8, block=8, vocab_size=64, ends_early=True
)


def test_clients_have_whole_answers_over_either_transport(system: System) -> None:
    with clients() as callers:
        timings = {
            transport: callers.drive(Address(transport, target), TRAFFIC)
            for transport, target in zip(TRANSPORTS, (system.grpc_target, system.url), strict=True)
        }
    for timing in timings.values():
        assert len(timing.last_s) == TRAFFIC.num_requests
        assert timing.num_chunks >= TRAFFIC.num_requests
