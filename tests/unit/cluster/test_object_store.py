from __future__ import annotations

from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.dimensions import LLADA_8B
from cluster.config import ClusterConfig
from cluster.config_file import parse_config
from cluster.errors import StartError
from cluster.supervisor.driver import checked_model, memory_of_machine, object_store_bytes
from cluster.supervisor.object_store import MIN_BYTES, Memory, StoreSize, heaviest_copy_bytes, store_size
from workers.bicache.copies import EntryFormat

MIB, GIB = 1 << 20, 1 << 30
LARGE = Memory(512 * GIB, 256 * GIB)
KNOB = "resources.object_store_bytes"


def config_of(size: int | str = "auto", **coherence: Any) -> ClusterConfig:
    return parse_config({"resources": {"object_store_bytes": size}, "worker": {"coherence": coherence}})


def test_no_copy_is_heavier_than_the_heaviest() -> None:
    """In a model of 8 billion parameters, 2,048 tokens take 0.8 GiB at 24 layers, its full context length 2.1 GiB."""
    heaviest = heaviest_copy_bytes(LLADA_8B, 4, 2, None)
    layout = EntryFormat("f", "e", "bfloat16", 32, 32, 128, 4096, 2)
    assert layout.body_bytes(2048, 24, 0) == 768 * MIB
    assert heaviest == layout.body_bytes(LLADA_8B.context_length, 32, 4) == 2176 * MIB
    assert heaviest_copy_bytes(LLADA_8B, 4, 2, 512 * MIB) == 512 * MIB


def test_auto_has_room_for_the_concurrent_copies_of_all_replicas() -> None:
    assert store_size(config_of(), 4, 2 * GIB, LARGE) == StoreSize(16 * GIB)


@pytest.mark.parametrize(
    ("coherence", "num_replicas"), [({}, 1), ({"transfer": "never"}, 4), ({"tensor_transport": "nixl"}, 4)]
)
def test_a_store_without_copies_is_small(coherence: dict[str, Any], num_replicas: int) -> None:
    assert store_size(config_of(**coherence), num_replicas, 2 * GIB, LARGE) == StoreSize(MIN_BYTES)


@given(
    num_replicas=st.integers(1, 16),
    copy=st.integers(0, 4 * GIB),
    total=st.integers(GIB, 1024 * GIB),
    shared=st.integers(0, 512 * GIB),
)
def test_auto_leaves_memory_to_others_and_warns_of_slow_copies(
    num_replicas: int, copy: int, total: int, shared: int
) -> None:
    size = store_size(config_of(), num_replicas, copy, Memory(total, shared))
    assert size.num_bytes >= MIN_BYTES
    assert size.num_bytes == MIN_BYTES or size.num_bytes <= min(0.3 * total, 0.9 * shared)
    assert (size.warning is not None) == (num_replicas > 1 and size.num_bytes < copy)


def test_the_warning_names_the_knobs() -> None:
    """A container without settings has 64 MiB of /dev/shm."""
    size = store_size(config_of(), 2, 2 * GIB, Memory(512 * GIB, 64 * MIB))
    assert size.num_bytes == MIN_BYTES
    words = (KNOB, "2048 MiB", "128 MiB", "/dev/shm", "64 MiB", "--shm-size", "worker.coherence.transfer")
    assert [word for word in words if word not in (size.warning or "")] == []


def test_a_configured_size_is_given_or_refused() -> None:
    assert store_size(config_of(3 * GIB), 2, 2 * GIB, LARGE) == StoreSize(3 * GIB)
    assert KNOB in (store_size(config_of(GIB), 2, 2 * GIB, LARGE).warning or "")
    with pytest.raises(StartError, match=rf"{KNOB} is 3072 MiB.*1024 MiB of room in /dev/shm"):
        store_size(config_of(3 * GIB), 2, 2 * GIB, Memory(512 * GIB, GIB))
    with pytest.raises(StartError, match=rf"{KNOB} is 3072 MiB.*2048 MiB of memory"):
        store_size(config_of(3 * GIB), 2, 2 * GIB, Memory(2 * GIB, 4 * GIB))


def test_a_container_has_the_memory_of_its_limit(tmp_path: Path) -> None:
    limited, unlimited = tmp_path / "limited", tmp_path / "unlimited"
    limited.write_text("1073741824\n")
    unlimited.write_text("max\n")
    assert memory_of_machine([unlimited, tmp_path / "absent"]).total_bytes == psutil.virtual_memory().total
    assert memory_of_machine([unlimited, limited]).total_bytes == GIB


def test_the_driver_sizes_it_by_the_served_model_and_its_pool(random_model: Path) -> None:
    model = checked_model(random_model)
    small = parse_config({"model": str(random_model), "replicas": 2, "worker": {"device": "cpu"}})
    assert object_store_bytes(small, model, 0, LARGE) == MIN_BYTES
    heavy = parse_config({"replicas": 2, "worker": {"device": "cpu", "kv": {"pool_bytes": 256 * MIB}}})
    assert object_store_bytes(heavy, LLADA_8B, 0, LARGE) == 4 * 128 * MIB
