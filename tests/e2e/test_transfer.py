"""Two replicas on real Ray: an entry that one has built reaches the other as a copy."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.prompts import LONG, chat, sheet
from tests.e2e.system import System, running
from tests.support.requirements import NO_NIXL, require_bundled_model
from tests.support.waiting import eventually

pytestmark = pytest.mark.system


@pytest.fixture(scope="module", params=["object_store", "nixl", None])
def transport(request: pytest.FixtureRequest) -> str | None:
    """Return how copies travel; None if they don't."""
    if request.param == "nixl":
        pytest.importorskip("nixl", reason=NO_NIXL)
        if len(os.sched_getaffinity(0)) < 4:
            pytest.skip("nixl keeps one core of each replica busy: needs 4 cores")
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def system(transport: str | None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """Start two replicas that copy whatever they can, or nothing."""
    require_bundled_model()
    directory: Path = tmp_path_factory.mktemp("transfer")
    coherence: dict[str, Any] = {"transfer": "never"}
    if transport:
        coherence = {"transfer": "always", "tensor_transport": transport, "max_wait_s": 30.0, "fetch_timeout_s": 30.0}
    worker = {"dtype": "float32", "coherence": coherence}
    (directory / "palimpsest.yaml").write_text(yaml.safe_dump({"replicas": 2, "worker": worker}))
    with running("factbook", directory / "serve.log", "--config", str(directory / "palimpsest.yaml")) as system:
        yield system


def ask(system: System, **options: Any) -> tuple[str, str]:
    """Return the answer, and the replica that gave it."""
    body = {"messages": chat(sheet("Hugo")), "max_tokens": 16, **options}
    response = system.post("/v1/chat/completions", body)
    assert response.status_code == 200, response.text
    answer = response.json()
    return answer["choices"][0]["message"]["content"], answer["diffusion"]["replica"]


def test_another_replica_answers_the_same_whether_from_a_copy_or_from_its_own_build(
    system: System, transport: str | None
) -> None:
    text, first = ask(system)
    eventually(lambda: system.metric("palimpsest_router_placements") > 0)
    with ThreadPoolExecutor() as pool:
        busy = []
        answers = {first: text}

        def is_answered_elsewhere() -> bool:
            """Ask until the holder has so much to do that the other replica is cheaper."""
            busy.append(pool.submit(ask, system, **LONG))
            again, replica = ask(system)
            answers[replica] = again
            return replica != first

        eventually(is_answered_elsewhere)
        assert all(future.result()[0] for future in busy)
    assert len(answers) == 2
    assert set(answers.values()) == {text}

    def total(name: str, **labels: str) -> float:
        return system.metric(f"palimpsest_worker_{name}", **labels)

    assert (total("entries_built_total"), total("entries_fetched_total")) == ((1, 1) if transport else (2, 0))
    assert (total("entries_sent_total"), total("fetches_refused_total")) == ((1, 0) if transport else (0, 0))
    if transport:
        assert total("fetched_bytes_total", transport=transport) == total("sent_bytes_total") > 0
