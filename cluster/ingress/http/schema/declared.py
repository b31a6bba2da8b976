"""Make the bodies' decoding parameters from the declarations in `workers.api`."""

from __future__ import annotations

import math
from typing import Annotated, Any, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, create_model, field_validator

from workers.api import PARAMETERS, DecodingParams
from workers.parameter import Parameter

PARAMETERS_BY_NAME = {parameter.name: parameter for parameter in PARAMETERS}
SEED_PARAMETER = PARAMETERS_BY_NAME["seed"]
PARAMETER_TYPES = get_type_hints(DecodingParams)
TokenId = Annotated[int, Field(strict=False)]
"""A token id as the key of an object, where JSON knows only strings."""


class Body(BaseModel):
    """Accepts only values of the declared type: `"yes"` is not true, and 1.5 is not a number of tokens."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @field_validator("*")
    @classmethod
    def whole_characters(cls, value: object) -> object:
        r"""Refuse a lone surrogate, which JSON can spell (`"\ud800"`) but no text contains."""
        texts = value if isinstance(value, list) else [value]
        try:
            "".join(text for text in texts if isinstance(text, str)).encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"holds a lone surrogate, half of a character, at position {error.start}") from error
        return value


def declared_type(parameter: Parameter) -> Any:
    """Return the type of a parameter in a body. OpenAI's own parameters may be null; a map is an object."""
    if parameter.name == "logit_bias":
        return dict[TokenId, Annotated[float, Field(**constraints(parameter))]] | None
    kind = PARAMETER_TYPES[parameter.name]
    return kind | None if parameter.is_openai else kind


def declared_field(parameter: Parameter) -> Any:
    """Return the default, bounds and help text of a parameter in a body."""
    within = {} if parameter.name == "logit_bias" else constraints(parameter)
    return Field(default=None if parameter.is_openai else parameter.default, description=parameter.help, **within)


def constraints(parameter: Parameter) -> dict[str, Any]:
    """Return a parameter's bounds as pydantic names them."""
    bounds = parameter.bounds
    if bounds is None:
        return {}
    least = {"gt" if bounds.excludes_least else "ge": bounds.least}
    return least | ({"le": bounds.most} if bounds.most < math.inf else {})


def options_body(name: str, *, is_openai: bool) -> Any:
    """Return a body with OpenAI's own parameters, or with those of the object `diffusion`."""
    declared: dict[str, Any] = {
        parameter.client_name: (declared_type(parameter), declared_field(parameter))
        for parameter in PARAMETERS
        if parameter.is_openai is is_openai
    }
    return create_model(name, __base__=Body, **declared)
