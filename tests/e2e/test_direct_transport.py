"""Copies that are read out of another process's memory: Ray Direct Transport over nixl, between real Ray actors."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest
import ray
import torch
from ray.exceptions import RayError

from tests.e2e.direct import Holder, a_copy
from workers.config import CoherenceConfig
from workers.deployment import NIXL, NoDirectTransportError, Reference, has_direct_transport

pytest.importorskip("nixl", reason="nixl isn't installed (palimpsest[rdt])")

CPU = torch.device("cpu")
TIMEOUT_S = 60.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def test_a_body_is_read_out_of_its_holders_memory(cluster: None) -> None:
    holder = ray.remote(num_cpus=0)(Holder).remote()
    parcel = ray.get(holder.hand_out.remote("cpu"))
    assert isinstance(parcel.body, Reference)
    assert parcel.copy.num_bytes == 0
    opened = parcel.opened(TIMEOUT_S)
    assert opened.transport == NIXL
    assert opened.digest() == opened.seal == a_copy("cpu").seal


def test_a_body_whose_holder_died_is_given_up_in_time(cluster: None) -> None:
    holder = ray.remote(num_cpus=0)(Holder).remote()
    parcel = ray.get(holder.hand_out.remote("cpu"))
    ray.kill(holder)
    with pytest.raises(RayError):
        parcel.opened(timeout_s=1.0)


@pytest.mark.parametrize(("wanted", "found"), [("auto", False), ("object_store", False), ("nixl", True)])
def test_a_replica_on_a_cpu_has_it_where_it_is_asked_for(cluster: None, wanted: str, found: bool) -> None:
    config = CoherenceConfig(tensor_transport=wanted)  # type: ignore[arg-type]
    assert has_direct_transport(config, CPU, 2) is found
    assert not has_direct_transport(replace(config, transfer="never"), CPU, 2)


def test_who_insists_on_it_where_it_is_not_is_told_what_to_do(cluster: None) -> None:
    class Without:
        def attempt(self) -> str:
            sys.modules["nixl"] = None  # type: ignore[assignment]
            try:
                has_direct_transport(CoherenceConfig(tensor_transport="nixl"), CPU, 2)
            except NoDirectTransportError as error:
                return str(error)
            return ""

    message = ray.get(ray.remote(num_cpus=0)(Without).remote().attempt.remote())
    assert "worker.coherence.tensor_transport is nixl" in message
    assert "palimpsest[rdt]" in message
