"""Each package installs with the extra that is made for it: what it imports is declared there or below."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[3]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
OURS = {"protos", "cache_service", "workers", "cluster"}
ELSEWHERE = {
    "cache_service": {"redis"},  # the store that the extra of that name brings
    "workers": {"ray", "triton"},  # the deployment, which the extra serve is for; what CUDA's torch brings
}


def declared(extra: str) -> set[str]:
    """Return the distributions that an extra brings, with those of the extras that it contains."""
    found = {name_of(text) for text in PROJECT["dependencies"]}
    for text in PROJECT["optional-dependencies"][extra]:
        inner = re.fullmatch(r"palimpsest\[(\w+)\]", text)
        found |= declared(inner.group(1)) if inner else {name_of(text)}
    return found


def name_of(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement, maxsplit=1)[0].lower().replace("_", "-")


def imports(package: str) -> Iterator[str]:
    """Yield the top-level modules that a package imports from elsewhere."""
    for path in (REPOSITORY / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from (alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                yield node.module.partition(".")[0]


@pytest.mark.parametrize(
    ("package", "extra"), [("cache_service", "cache"), ("workers", "worker"), ("cluster", "serve")]
)
def test_an_extra_brings_what_its_package_imports(package: str, extra: str) -> None:
    known, brought = packages_distributions(), declared(extra)
    foreign = set(imports(package)) - OURS - ELSEWHERE.get(package, set()) - set(sys.stdlib_module_names)
    missing = {name for name in foreign if not {name_of(one) for one in known.get(name, [name])} & brought}
    assert missing == set()
