"""Adjusts logits before tokens are chosen: guidance, bias and the minimum length."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from workers.decoding.sampling import Sampling


def guide(conditional: Tensor, unconditional: Tensor, guidance: float) -> Tensor:
    """Apply classifier-free guidance as LLaDA does: u + (w + 1)(c - u), all [n, vocab]."""
    return unconditional + (guidance + 1) * (conditional - unconditional)


def adjust(logits: Tensor, positions: Sequence[int], sampling: Sampling) -> Tensor:
    """Return logits [len(positions), vocab] with the request's bias, and without EOS before the minimum length."""
    decoding = sampling.decoding
    too_early = [index for index, position in enumerate(positions) if position < decoding.first_eos]
    if not (decoding.logit_bias or too_early):
        return logits
    logits = logits.clone()
    if decoding.logit_bias:
        token_ids, biases = zip(*decoding.logit_bias, strict=True)
        columns = torch.tensor(token_ids, device=logits.device)
        logits[:, columns] += torch.tensor(biases, dtype=logits.dtype, device=logits.device)
    logits[too_early, sampling.eos_token_id] = -torch.inf
    return logits
