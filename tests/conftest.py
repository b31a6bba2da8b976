"""Mark tests that start systems, or need a GPU, as `serial`, and let no test fail for how long an example takes."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes depends on what else runs here.
settings.register_profile("shared cores", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared cores")

SERIAL = [Path(__file__).parent / name for name in ("e2e", "faults", "gpu")]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark by folder, before `-m` selects."""
    for item in items:
        if any(folder in item.path.parents for folder in SERIAL):
            item.add_marker(pytest.mark.serial)
