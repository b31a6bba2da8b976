"""Measures the depth to which a model can reuse prefixes, by the prefix's part of the request.

The published profile asks whether a prefix's K/V are similar with and without the suffix: their cosine similarity must
exceed theta in all leading layers. That says little about the answer. It never tests layer b, though its K/V come from
a reused state, and the model may read K/V that differ in the same way. So the table here asks the model: depth b is
safe where reuse predicts the tokens that the exact pass commits, at b and at every smaller depth. The canvas is masked
to several degrees, as in serving, and is part of the sequence whose share the ratio is. Depth 0 is always safe.

A prompt is cut where the server would cut it, so that earlier turns may follow the cut. A model may read those
differently, so that a depth must be safe for prompts with and without them.

Terms: docs/glossary.md.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import takewhile
from pathlib import Path
from statistics import fmean

import torch
import torch.nn.functional as F
from torch import Tensor

from workers.bicache.depth import ratio_percent
from workers.models.base import DiffusionLM
from workers.models.layers import full_attention

KV = tuple[Tensor, Tensor]
NUM_LEVELS = 4
"""Canvases for each prompt: the first is all masked, and each next one has half of its masks committed."""


@dataclass(frozen=True)
class ProfileSample:
    """Holds a prompt whose first `prefix` tokens are shared, followed by a canvas of `canvas` tokens."""

    token_ids: tuple[int, ...]
    prefix: int
    canvas: int
    has_later_turns: bool = False
    """True if earlier turns lie between the prefix and the last one."""

    @property
    def ratio(self) -> int:
        return ratio_percent(self.prefix, len(self.token_ids) + self.canvas)


@dataclass(frozen=True)
class ProfileConfig:
    """Configures the thresholds at which reuse counts as safe, and the width of a bucket of ratios."""

    theta: float = 0.97
    """K/V similarity that the published rule requires."""
    agreement: float = 0.97
    """Mean fraction of the tokens committed by the exact pass, apart from EOS, that reuse must predict too."""
    bucket_percent: int = 10


@dataclass(frozen=True)
class Measurement:
    """Holds one sample's `similarity` of prefix K/V by layer and `agreement` of committed tokens by depth 0..L."""

    ratio: int
    similarity: tuple[float, ...]
    agreement: tuple[float, ...]
    has_later_turns: bool = False


@dataclass(frozen=True)
class Bucket:
    """Averages all samples of one range of ratios, a column of the heat map."""

    ratio: int
    """Lower edge of the range, in percent."""
    num_samples: int
    similarity: tuple[float, ...]
    """Similarity by layer."""
    agreement: tuple[float, ...]
    """Agreement by depth 0..L: the lower of the means over prompts with and without turns after the prefix."""

    def published_depth(self, config: ProfileConfig) -> int:
        """Count the leading layers whose K/V are similar enough, by the published rule."""
        return len(list(takewhile(lambda cosine: cosine > config.theta, self.similarity)))


@dataclass(frozen=True)
class Profile:
    """Holds the evidence and derives two tables from it: ours, and the published rule's."""

    config: ProfileConfig
    buckets: tuple[Bucket, ...]

    @property
    def table(self) -> dict[int, int]:
        """Return depths by ratio, stored where they change; below the first bucket nothing is reused.

        The smaller the prefix's part of a request, the more weight its suffix has, so that agreement rises with the
        ratio. Each depth's agreements are fitted by a rising curve first, so that the samples of one bucket support
        the others.
        """
        weights = [bucket.num_samples for bucket in self.buckets]
        fitted = zip(
            *(isotonic_fit(column, weights) for column in zip(*(one.agreement for one in self.buckets), strict=True)),
            strict=True,
        )
        table = {0: 0}
        for bucket, agreement in zip(self.buckets, fitted, strict=True):
            depth = count_leading(agreement[1:], self.config.agreement)
            if depth != list(table.values())[-1] or bucket.ratio == 0:
                table[bucket.ratio] = depth
        return table

    @property
    def published_table(self) -> dict[int, int]:
        """Return the published rule's depths, each stored only where it exceeds those of all smaller ratios."""
        table: dict[int, int] = {}
        for bucket in self.buckets:
            depth = bucket.published_depth(self.config)
            if depth > max(table.values(), default=0):
                table[bucket.ratio] = depth
        return table

    def save(self, path: Path) -> None:
        """Write the depth table in the format of the model loader, with the measurements that support it."""
        content = {
            "table": self.table,
            "published_rule": self.published_table,
            "config": asdict(self.config),
            "buckets": [asdict(bucket) for bucket in self.buckets],
        }
        path.write_text(json.dumps(content, indent=1) + "\n")


class Profiler:
    """Measures one model's similarity and agreement."""

    def __init__(self, model: DiffusionLM, device: torch.device) -> None:
        self._model, self._device = model, device
        self._num_layers = model.config.num_layers

    @torch.inference_mode()
    def measure(self, sample: ProfileSample) -> Measurement:
        """Measure one sample by `NUM_LEVELS` exact passes, and as many at every depth."""
        config, prefix = self._model.config, sample.prefix
        tokens = torch.tensor([*sample.token_ids, *[config.mask_token_id] * sample.canvas], device=self._device)
        masked = torch.arange(len(sample.token_ids), len(tokens), device=self._device)
        alone = self._model.embed(tokens[:prefix])
        alone_kv: list[KV] = []
        states = [alone, *self._layers(alone, 0, range(self._num_layers), alone_kv)]
        similarity: list[float] = []
        agreeing, compared = [0] * (self._num_layers + 1), [0] * (self._num_layers + 1)
        for _ in range(NUM_LEVELS):
            exact_kv: list[KV] = []
            *_, exact = self._layers(self._model.embed(tokens), 0, range(self._num_layers), exact_kv)
            similarity = similarity or [cosine(a, b, prefix) for a, b in zip(alone_kv, exact_kv, strict=True)]
            confident, expected, rest = most_confident_half(masked, self._logits(exact, masked))
            for depth, reused in enumerate(self._reused(tokens, states, alone_kv)):
                predicted = self._logits(reused, confident - prefix).argmax(-1)
                is_compared = (expected != config.eos_token_id) | (predicted != config.eos_token_id)
                agreeing[depth] += int(((predicted == expected) & is_compared).sum())
                compared[depth] += int(is_compared.sum())
            tokens[confident], masked = expected, rest
        agreement = (same / total if total else 1.0 for same, total in zip(agreeing, compared, strict=True))
        return Measurement(sample.ratio, tuple(similarity), tuple(agreement), sample.has_later_turns)

    def _reused(self, tokens: Tensor, states: Sequence[Tensor], alone: Sequence[KV]) -> Iterable[Tensor]:
        """Yield the suffix's last hidden states under reuse of 0, 1, ..., L layers."""
        prefix = len(states[0])
        suffix = self._model.embed(tokens[prefix:])
        for depth in range(self._num_layers):
            rows = torch.cat((states[depth], suffix))
            *_, last = self._layers(rows, 0, range(depth, self._num_layers), [])
            yield last[prefix:]
            [suffix] = self._layers(suffix, prefix, range(depth, depth + 1), [], alone)
        yield suffix

    def _layers(
        self, x: Tensor, start: int, layers: range, kept: list[KV], before: Sequence[KV] | None = None
    ) -> list[Tensor]:
        """Run the rows at positions from `start` on through `layers`, and return the states after each.

        The rows see each other and, where given, each layer's K/V `before` them. Their own K/V are added to `kept`.
        """
        after = []
        rope = self._model.rope(torch.arange(start, start + len(x), device=self._device))
        rows = range(start, start + len(x))
        mask = self._model.config.visible(rows, rows if before is None else range(rows.stop), self._device)
        for index in layers:
            layer = self._model.stack[index]
            q, k, v = layer.qkv(x, *rope)
            kept.append((k, v))
            if before is not None:
                k, v = torch.cat((before[index][0], k)), torch.cat((before[index][1], v))
            x = layer.finish(x, full_attention(index, q, k, v, mask).flatten(-2))
            after.append(x)
        return after

    def _logits(self, hidden: Tensor, positions: Tensor) -> Tensor:
        logits = self._model.logits(hidden[positions - self._model.config.prediction_shift])
        logits[:, self._model.config.mask_token_id] = -torch.inf
        return logits


def count_leading(values: Sequence[float], minimum: float) -> int:
    """Count the values before the first that is under `minimum`."""
    return len(list(takewhile(lambda value: value >= minimum, values)))


def isotonic_fit(values: Sequence[float], weights: Sequence[int]) -> list[float]:
    """Return the sequence that never falls and has the least weighted squares of differences to `values`.

    This pools adjacent violators (Ayer et al. 1955): a weighted mean replaces neighbours that fall.
    """
    pools: list[tuple[float, int, int]] = []  # mean, weight, number of values
    for value, weight in zip(values, weights, strict=True):
        mean, total, length = value, weight, 1
        while pools and pools[-1][0] > mean:
            last_mean, last_weight, last_length = pools.pop()
            mean = (last_mean * last_weight + mean * total) / (last_weight + total)
            total, length = total + last_weight, length + last_length
        pools.append((mean, total, length))
    return [mean for mean, _, length in pools for _ in range(length)]


def most_confident_half(masked: Tensor, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the masked positions that are predicted most confidently, their tokens, and the other half."""
    confidence, chosen = logits.softmax(-1).max(-1)
    order = confidence.argsort(descending=True, stable=True)
    confident, rest = order[: (len(order) + 1) // 2], order[(len(order) + 1) // 2 :]
    return masked[confident], chosen[confident], masked[rest.sort().values]


def cosine(a: KV, b: KV, num_tokens: int) -> float:
    """Return the mean over tokens, K and V of the cosine over a token's flattened heads."""
    pairs = zip(a, b, strict=True)
    return sum(F.cosine_similarity(x.flatten(1), y[:num_tokens].flatten(1)).mean().item() for x, y in pairs) / 2


def profile(measurements: Iterable[Measurement], config: ProfileConfig) -> Profile:
    """Group measurements into buckets of ratios, and average each bucket."""
    groups: defaultdict[int, list[Measurement]] = defaultdict(list)
    for measurement in measurements:
        groups[measurement.ratio // config.bucket_percent * config.bucket_percent].append(measurement)
    return Profile(config, tuple(bucket_of(ratio, group) for ratio, group in sorted(groups.items())))


def bucket_of(ratio: int, group: Sequence[Measurement]) -> Bucket:
    kinds = [[one for one in group if one.has_later_turns is kind] for kind in (False, True)]
    agreements = [column_means(one.agreement for one in kind) for kind in kinds if kind]
    return Bucket(
        ratio=ratio,
        num_samples=len(group),
        similarity=column_means(measurement.similarity for measurement in group),
        agreement=tuple(map(min, zip(*agreements, strict=True))),
    )


def column_means(rows: Iterable[tuple[float, ...]]) -> tuple[float, ...]:
    """Return the mean of each column."""
    return tuple(round(fmean(column), 4) for column in zip(*rows, strict=True))


def measure(model: DiffusionLM, samples: Iterable[ProfileSample], device: torch.device) -> Iterator[Measurement]:
    """Measure the samples whose prefix can be reused."""
    profiler = Profiler(model, device)
    for sample in samples:
        if 0 < sample.prefix <= len(sample.token_ids) - model.config.prediction_shift:
            yield profiler.measure(sample)
