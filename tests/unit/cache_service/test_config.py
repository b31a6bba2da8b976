from __future__ import annotations

from pathlib import Path

import pytest

from cache_service.config import ServerConfig, load
from cache_service.errors import InvalidRequest


def test_options_go_before_the_file(tmp_path: Path) -> None:
    path = tmp_path / "cache.yaml"
    path.write_text("port: 7171\nhistory: 10\n")
    assert load(path, {"port": 0}) == ServerConfig(port=0, history=10)
    assert load(None, {}) == ServerConfig()


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("prot: 7171", "prot"),
        ("port: x", "port"),
        ("port: 70000", "port"),
        ("history: 0", "history"),
        ("tick_s: 0", "tick_s"),
        ("[1]", "mapping"),
        ("port: [", "cache.yaml"),
    ],
)
def test_errors_name_what_is_wrong(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "cache.yaml"
    path.write_text(text)
    with pytest.raises(InvalidRequest, match=named):
        load(path, {})


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"nowhere\.yaml"):
        load(tmp_path / "nowhere.yaml", {})
