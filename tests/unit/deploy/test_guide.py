"""`docs/deploy.md` names files that exist, and every section of the configuration."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from cluster.config import ClusterConfig


@pytest.fixture(scope="module")
def guide(repository: Path) -> str:
    return (repository / "docs" / "deploy.md").read_text()


def test_every_path_exists(guide: str, repository: Path) -> None:
    paths = set(re.findall(r"(?<![\w/-])(?:deploy|cluster|workers)/[\w./-]*\w", guide.replace("../", "")))
    assert len(paths) > 5
    assert [path for path in sorted(paths) if not (repository / path).exists()] == []


@pytest.mark.parametrize("key", [field.name for field in fields(ClusterConfig)])
def test_every_section_of_the_configuration_is_explained(key: str, guide: str) -> None:
    assert re.search(rf"^\| [^|]*`{key}`", guide, re.MULTILINE)
