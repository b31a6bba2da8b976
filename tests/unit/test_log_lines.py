"""Log lines are sentences for operators: none prints an object's representation, except that of an exception."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
LEVELS = {"debug", "info", "warning"}


def formats_of(path: Path) -> Iterator[str]:
    """Yield the messages of the calls to loggers, as written."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LEVELS:
            receiver = ast.unparse(node.func.value)
            if receiver.endswith(("log", "logger")) and node.args:
                yield ast.unparse(node.args[0])


def test_no_line_prints_a_representation() -> None:
    packages = [ROOT / name for name in ("cache_service", "cluster", "workers")]
    formats = [text for package in packages for path in package.rglob("*.py") for text in formats_of(path)]

    assert len(formats) > 20
    assert [text for text in formats if "%r" in text or "!r}" in text] == []
