"""Declare the interface of generation to the worker replicas."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

from workers.api import GenerateChunk, GenerateRequest, ModelInfo


class Workers(Protocol):
    """Declares the calls that generation makes to the worker replicas."""

    def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateChunk, None]:
        """Yield the chunks in order, the acceptance first; closing the generator stops the work."""
        ...

    async def model_info(self) -> ModelInfo | None:
        """Return the model that the first replica to answer serves; None if no replica answers now."""
        ...
