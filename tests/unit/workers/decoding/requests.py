"""Requests with every kind of layout, and what plain decoders need to follow them."""

from __future__ import annotations

import random
from dataclasses import replace

from tests.unit.workers.decoding.reference import Rules
from tests.unit.workers.tiny import TINY, prompt_of, request_of, tiny_model
from workers.api import GenerateRequest
from workers.decoding.rules import Decoding
from workers.models.dream import DECODING
from workers.models.loader import LoadedModel

EOS, MASK = TINY.eos_token_id, TINY.mask_token_id
TABLE = {0: 1, 50: 2, 80: 3}


def dream_model(seed: int) -> LoadedModel:
    return tiny_model(seed, architecture="dream", prediction_shift=1, decoding=DECODING)  # type: ignore[arg-type]


def rules_of(request: GenerateRequest, **decoding: object) -> Rules:
    first_eos = len(request.token_ids) + request.params.min_tokens
    return Rules(Decoding(first_eos=first_eos, **decoding), MASK, EOS)  # type: ignore[arg-type]


def infill_request(draw: random.Random, number: int, **params: object) -> GenerateRequest:
    """Holes in the prompt, a canvas, and text behind it; each may be missing."""
    prompt = prompt_of(draw.randint(1, 20), seed=number)
    holes = tuple(sorted(draw.sample(range(len(prompt)), draw.randint(0, len(prompt) // 2))))
    canvas = draw.randint(0 if holes else 1, 12)
    request = request_of(prompt, canvas, request_id=f"r{number}", **params)
    return replace(request, holes=holes, suffix=prompt_of(draw.randint(0, 9), seed=number + 1))


def layout(request: GenerateRequest) -> tuple[list[int], list[int]]:
    """The whole sequence, and the positions to fill."""
    canvas = range(len(request.token_ids), len(request.token_ids) + request.max_tokens)
    return [*request.token_ids, *[0] * len(canvas), *request.suffix], [*request.holes, *canvas]
