"""Copies that are read out of another process's memory: Ray Direct Transport over nixl, between real Ray actors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import ray
from ray.exceptions import RayError

from tests.e2e.direct import Holder, Reader, WithoutNixl, a_copy
from tests.support.requirements import NO_NIXL
from workers.config import CoherenceConfig
from workers.deployment import NIXL, BodyReference

pytest.importorskip("nixl", reason=NO_NIXL)

pytestmark = pytest.mark.system

TIMEOUT_S = 60.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def actor(kind: type) -> Any:
    return ray.remote(num_cpus=0)(kind).remote()


def test_a_body_is_read_out_of_its_holders_memory(cluster: None) -> None:
    holder, reader = actor(Holder), actor(Reader)
    parcel = ray.get(holder.send_packed_copy.remote("cpu"))
    assert isinstance(parcel.body, BodyReference)
    assert parcel.copy.num_bytes == 0
    found = ray.get(reader.read.remote(parcel, TIMEOUT_S))
    assert found == (NIXL, "cpu", parcel.copy.seal)
    assert parcel.copy.seal == a_copy("cpu").seal


def test_a_body_whose_holder_died_is_given_up_in_time(cluster: None) -> None:
    holder, reader = actor(Holder), actor(Reader)
    parcel = ray.get(holder.send_packed_copy.remote("cpu"))
    ray.kill(holder)
    with pytest.raises(RayError):
        ray.get(reader.read.remote(parcel, 1.0))


@pytest.mark.parametrize(("wanted", "found"), [("auto", False), ("object_store", False), ("nixl", True)])
def test_a_replica_on_a_cpu_uses_nixl_only_if_configured(cluster: None, wanted: str, found: bool) -> None:
    reader = actor(Reader)
    config = CoherenceConfig(tensor_transport=wanted)  # type: ignore[arg-type]
    assert ray.get(reader.has_transport.remote(config)) is found
    assert not ray.get(reader.has_transport.remote(replace(config, transfer="never")))


def test_without_nixl_the_error_says_what_to_do(cluster: None) -> None:
    message = ray.get(actor(WithoutNixl).complaint.remote())
    assert "worker.coherence.tensor_transport is nixl" in message
    assert "palimpsest[rdt]" in message
