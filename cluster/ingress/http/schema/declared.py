"""Make the bodies' decoding parameters from the declarations in `workers.api`."""

from __future__ import annotations

import math
from itertools import islice
from typing import Annotated, Any, get_type_hints

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, create_model, field_validator, model_validator

from workers.api import PARAMETERS, DecodingParams
from workers.parameter import Parameter

PARAMETERS_BY_NAME = {parameter.name: parameter for parameter in PARAMETERS}
SEED_PARAMETER = PARAMETERS_BY_NAME["seed"]
PARAMETER_TYPES = get_type_hints(DecodingParams)
MAX_REPORTED = 100
TokenId = Annotated[int, Field(strict=False)]
"""A token id as the key of an object, where JSON knows only strings."""
EMPTY: tuple[Any, ...] = (None, "", [], {})
"""The values with which a field says nothing."""


class Body(BaseModel):
    """Accepts only values of the declared type: `"yes"` is not true, and 1.5 is not a number of tokens.

    Unknown fields are refused, unless they say nothing.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def without_empty_fields(cls, data: Any) -> Any:
        """Leave out optional fields that are null, and unknown ones that are empty. Of the others, one is refused."""
        if not isinstance(data, dict):
            return data
        known, unknown = cls.model_fields, {}
        for name, value in data.items():
            if name not in known and value not in EMPTY:
                unknown = {name: value}
                break
        return unknown | {
            name: value
            for name, value in data.items()
            if name in known and (value is not None or known[name].is_required())
        }

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


def with_few_faults(biases: Any) -> Any:
    """Refuse an object with very many entries that are no bias at once: each would be reported apart."""
    if isinstance(biases, dict):
        beyond = PARAMETERS_BY_NAME["logit_bias"].find_out_of_bounds
        faults = (
            name
            for name, bias in biases.items()
            if not (name.isdecimal() and isinstance(bias, int | float) and beyond(bias) is None)
        )
        if len(list(islice(faults, MAX_REPORTED))) == MAX_REPORTED:
            raise ValueError(f"must map token ids to numbers that each {PARAMETERS_BY_NAME['logit_bias'].bounds}")
    return biases


def declared_type(parameter: Parameter) -> Any:
    """Return the type of a parameter in a body. OpenAI's own parameters may be null; a map is an object."""
    if parameter.name == "logit_bias":
        biases = dict[TokenId, Annotated[float, Field(**constraints(parameter))]]
        return Annotated[biases, BeforeValidator(with_few_faults)] | None
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
