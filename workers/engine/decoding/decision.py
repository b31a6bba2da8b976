"""One step's decision for one request."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from workers.engine.decoding.adjustment import adjust
from workers.engine.decoding.sampling import Sampling, predict
from workers.engine.decoding.unmasking import rank
from workers.errors import NonFiniteLogitsError
from workers.scheduler.plan import Decision
from workers.scheduler.timetable import Portion


def decide(logits: Tensor, positions: Sequence[int], portion: Portion, sampling: Sampling) -> Decision:
    """Commit a portion of `positions` (ascending), all of them masked; ties go to the left.

    logits [len(positions), vocab], guidance included. Raises NonFiniteLogitsError.
    """
    if not bool(torch.isfinite(logits).all()):
        raise NonFiniteLogitsError
    prediction = predict(adjust(logits, positions, sampling), sampling)
    order = rank(prediction, portion, sampling)
    chosen = prediction.token_ids[order].tolist()
    kept = prediction.probabilities[order].tolist() if sampling.decoding.remask else ()
    return Decision(tuple(positions[index] for index in order), tuple(chosen), tuple(kept))
