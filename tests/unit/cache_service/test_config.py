from __future__ import annotations

import sys
from pathlib import Path

import pytest

from cache_service.config import ServerConfig, load
from cache_service.core.quotas import ContextQuotas
from cache_service.errors import InvalidRequest
from cache_service.store import open_store
from cache_service.testing import FakeClock


def test_options_take_precedence_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "cache.yaml"
    path.write_text("port: 7171\nhistory: 10\ncontexts: {max_per_tenant: 5}\n")
    assert load(path, {"port": 0}) == ServerConfig(port=0, history=10, contexts=ContextQuotas(max_per_tenant=5))
    assert load(None, {}) == ServerConfig()


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("prot: 7171", "prot"),
        ("port: x", "port"),
        ("port: 70000", "port"),
        ("history: 0", "history"),
        ("tick_s: 0", "tick_s"),
        ("tick_s: .nan", "tick_s"),
        ("store_timeout_s: .inf", "store_timeout_s"),
        ("grace_s: .nan", "grace_s"),
        ("contexts: {max_total: 0}", "contexts.max_total must be at least 1, got 0"),
        ("contexts: {max_totl: 9}", "max_totl"),
        ("1: 2\nprot: 7171", "mapping"),
        ("[1]", "mapping"),
        ("port: [", "cache.yaml"),
    ],
)
def test_errors_name_what_is_wrong(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "cache.yaml"
    path.write_text(text)
    with pytest.raises(InvalidRequest, match=named):
        load(path, {})


def test_an_error_names_a_file_that_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "cache.yaml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidRequest, match=r"cache\.yaml"):
        load(path, {})


def test_the_error_of_a_broken_file_repeats_none_of_its_content(tmp_path: Path) -> None:
    path = tmp_path / "cache.yaml"
    path.write_text('port: 1\nstore: "redis://:s3cr3t@host/0\n')
    with pytest.raises(InvalidRequest, match="line 3") as refusal:
        load(path, {})
    assert "s3cr3t" not in str(refusal.value)


async def test_an_error_names_the_extra_of_a_store_whose_client_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, clock: FakeClock
) -> None:
    for name in [name for name in sys.modules if name.startswith("cache_service.store.redis")]:
        monkeypatch.delitem(sys.modules, name)
    for name in {"redis", *(name for name in sys.modules if name.startswith("redis."))}:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InvalidRequest, match=r"store: .*extra `redis`"):
        await open_store("redis://host", history=1, timeout_s=1.0, clock=clock)


def test_an_error_names_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"nowhere\.yaml"):
        load(tmp_path / "nowhere.yaml", {})
