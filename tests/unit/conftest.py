from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Limit torch to one thread: models this small gain nothing from more, and each core has a process of its own."""
    torch.set_num_threads(1)
