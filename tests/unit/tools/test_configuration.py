"""`docs/configuration.md` follows from the dataclasses that it is made from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import pytest

from cache_service.config import ServerConfig
from cache_service.core.quotas import ContextQuotas
from cluster.config import ClusterConfig
from cluster.config_file import parse_config, to_mapping
from tools.configuration import PAGE, Key, page, sections


def paths(mapping: Mapping[str, Any], above: str = "") -> Iterator[str]:
    for name, value in mapping.items():
        if isinstance(value, Mapping):
            yield from paths(value, f"{above}{name}.")
        else:
            yield above + name


def test_the_committed_page_is_up_to_date() -> None:
    assert PAGE.read_text() == page(), "run: make docs"


def test_every_key_of_the_file_is_listed() -> None:
    listed = {f"{part.path}.{key.name}".lstrip(".") for part in sections(ClusterConfig) for key in part.keys}
    assert listed == set(paths(to_mapping(parse_config({}))))


@pytest.mark.parametrize("config", [ClusterConfig, ServerConfig])
def test_every_key_has_a_meaning(config: type) -> None:
    missing = [f"{part.path}.{key.name}" for part in sections(config) for key in part.keys if not key.meaning]
    assert missing == []


def test_every_key_of_the_cache_service_is_listed() -> None:
    top, contexts = sections(ServerConfig)
    assert [key.name for key in top.keys] + [contexts.path] == [field.name for field in fields(ServerConfig)]
    assert [key.name for key in contexts.keys] == [field.name for field in fields(ContextQuotas)]


@dataclass(frozen=True)
class Inner:
    """The inner section.

    More that the page leaves out.
    """

    size: int | None = None
    """How large it is,
    over two lines."""
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outer:
    """The outer section."""

    mode: Literal["a", "b"] = "a"
    path: Path | None = None
    share: float | Literal["auto"] = 0.5
    inner: Inner = field(default_factory=Inner)


def test_a_section_shows_type_default_and_docstring_of_each_key() -> None:
    outer, inner = sections(Outer)
    assert outer.keys == (
        Key("mode", "`a` or `b`", "`a`", ""),
        Key("path", "path or null", "`null`", ""),
        Key("share", "number or `auto`", "`0.5`", ""),
    )
    assert (inner.path, inner.summary) == ("inner", "The inner section.")
    assert inner.keys == (
        Key("size", "int or null", "`null`", "How large it is, over two lines."),
        Key("names", "list of text", "`[]`", ""),
    )
