from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.checkpoints import write_random_checkpoint


@pytest.fixture(scope="session")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_checkpoint(tmp_path_factory.mktemp("random-model"))
