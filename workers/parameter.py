"""Declares each request parameter once, with its bounds and its help text.

The HTTP body, the gRPC decoder and the worker's own check derive from the declarations in `workers.api`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

METADATA_KEY = "parameter"
"""The key of a field's metadata."""


@dataclass(frozen=True)
class Bounds:
    """Limits a parameter to finite numbers from `least` to `most`."""

    least: float
    most: float = math.inf
    excludes_least: bool = False

    def contains(self, number: float) -> bool:
        """Return whether `number` lies within these bounds."""
        above = number > self.least if self.excludes_least else number >= self.least
        return above and number <= self.most and (isinstance(number, int) or math.isfinite(number))

    def __str__(self) -> str:
        """Return the bounds in the words of an error message."""
        if self.most < math.inf:
            left = "(" if self.excludes_least else "["
            return f"must lie in {left}{self.least}, {self.most}]"
        if self.least == 0 and not self.excludes_least:
            return "must be finite and not negative"
        return f"must be {'more than' if self.excludes_least else 'at least'} {self.least}"


@dataclass(frozen=True)
class Parameter:
    """Describes a parameter as clients know it."""

    name: str
    """The name of its field."""
    client_name: str
    default: Any
    bounds: Bounds | None
    is_openai: bool
    help: str

    @property
    def path(self) -> str:
        """Return the parameter's path in a request body: below `diffusion`, unless it is OpenAI's own."""
        return self.client_name if self.is_openai else f"diffusion.{self.client_name}"

    def find_out_of_bounds(self, value: Any) -> float | None:
        """Return a number in `value` that is out of bounds, or None. In a map, the bounds apply to the values."""
        if value is None or self.bounds is None:
            return None
        numbers = [number for _, number in value] if isinstance(value, tuple) else [value]
        return next((number for number in numbers if not self.bounds.contains(number)), None)


def parameter(
    help_text: str,
    default: Any = None,
    *,
    bounds: Bounds | None = None,
    name: str | None = None,
    is_openai: bool = False,
) -> Any:
    """Declare a field as a parameter; clients know it by `name`, or else by the field's own name."""

    def declare(field_name: str) -> Parameter:
        return Parameter(field_name, name or field_name, default, bounds, is_openai, help_text)

    return field(default=default, metadata={METADATA_KEY: declare})


def parameters_of(kind: type) -> tuple[Parameter, ...]:
    """Return the parameters that a dataclass declares, in order."""
    declared: list[Parameter] = []
    for each in fields(kind):
        declare: Callable[[str], Parameter] = each.metadata[METADATA_KEY]
        declared.append(declare(each.name))
    return tuple(declared)
