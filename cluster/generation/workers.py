"""The worker replicas as generation sees them."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

from workers.api import GenerateChunk, GenerateRequest, ModelInfo


class Workers(Protocol):
    """Reaches the worker replicas through whatever routes to them."""

    def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateChunk, None]:
        """Yield the chunks in order; closing the generator stops the work."""
        ...

    async def model_info(self) -> ModelInfo | None:
        """Return what the first replica to answer serves; None where no replica answers now."""
        ...
