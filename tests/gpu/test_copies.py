from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.support.requirements import NO_NIXL
from workers.bicache.checksum import checksum


@pytest.mark.parametrize("size", [0, 5, 8, 3_000_001])
def test_a_checksum_is_the_same_on_both_devices(cuda: torch.device, size: int) -> None:
    body = torch.randint(0, 256, (size,), dtype=torch.uint8, generator=torch.Generator().manual_seed(size))
    assert checksum(body.to(cuda)) == checksum(body)


@pytest.fixture
def ray_cluster() -> Iterator[None]:
    pytest.importorskip("nixl", reason=NO_NIXL)
    ray = pytest.importorskip("ray", reason="no Ray here: pip install -e '.[serve]'")
    ray.init(address="local", num_cpus=2, num_gpus=1, include_dashboard=False)
    yield
    ray.shutdown()


def test_a_copy_goes_from_one_process_s_device_memory_to_another_s(cuda: torch.device, ray_cluster: None) -> None:
    import ray

    from tests.e2e.direct import Holder, Reader, a_copy
    from workers.deployment import NIXL

    holder, reader = (ray.remote(num_gpus=0.5)(kind).remote() for kind in (Holder, Reader))
    found = ray.get(reader.read.remote(ray.get(holder.send_packed_copy.remote(str(cuda))), 60.0))
    assert found == (NIXL, "cuda", a_copy("cpu").seal)
