"""Tests that start systems, or need a GPU, are marked `serial`: they share ports, cores and memory."""

from __future__ import annotations

from pathlib import Path

import pytest

SERIAL = [Path(__file__).parent / name for name in ("e2e", "faults", "gpu")]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark by folder, before `-m` selects."""
    for item in items:
        if any(folder in item.path.parents for folder in SERIAL):
            item.add_marker(pytest.mark.serial)
