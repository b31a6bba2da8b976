"""How a request's values are refused."""

from __future__ import annotations

from workers.errors import InvalidRequestError


def check(condition: bool, param: str, problem: str, *, code: str | None = None) -> None:
    """Raises InvalidRequestError for `param` unless `condition` holds; its message begins with the name."""
    if not condition:
        raise InvalidRequestError(f"{param} {problem}", param=param, code=code)
