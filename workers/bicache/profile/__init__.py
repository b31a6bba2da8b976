"""Offline depth tables: how many shallow layers of a prefix a model lets be reused, by the prefix's share.

The published profile asks whether a prefix's K/V look alike with and without what follows (cosine similarity, over
theta in all leading layers). That says little about the answer: layer b is never tested, though its K/V come from a
reused state, and what looks different may be read alike. So the table here asks the model: depth b is safe where the
tokens that the exact pass commits are its tokens as well, at every smaller depth too. The canvas is there, masked to
several degrees, as in serving; it counts in the ratio. Depth 0 is always legal.

A prompt is cut where the server would cut it, so that earlier turns may stand behind the cut. A model may read those
differently, so that a depth must be safe for prompts with and without them.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
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
"""Canvases tried for each prompt: all masked, then each time the surer half of the rest committed."""


@dataclass(frozen=True)
class ProfileSample:
    """A prompt whose first `prefix` tokens are shared, with a canvas of `canvas` tokens behind it."""

    token_ids: tuple[int, ...]
    prefix: int
    canvas: int
    has_turns_behind: bool = False
    """Whether earlier turns stand between the prefix and the last one."""

    @property
    def ratio(self) -> int:
        return ratio_percent(self.prefix, len(self.token_ids) + self.canvas)


@dataclass(frozen=True)
class ProfileConfig:
    """When reuse counts as harmless, and how finely ratios are told apart."""

    theta: float = 0.97
    """K/V similarity that the published rule asks for."""
    agreement: float = 0.97
    """Share of tokens committed by the exact pass, EOS aside, that reuse must predict too; mean over samples."""
    bucket_percent: int = 10


@dataclass(frozen=True)
class Measurement:
    """One sample: `similarity` of prefix K/V by layer, `agreement` of committed tokens by depth 0..L."""

    ratio: int
    similarity: tuple[float, ...]
    agreement: tuple[float, ...]
    has_turns_behind: bool = False


@dataclass(frozen=True)
class Bucket:
    """All samples of one range of ratios: the heat map's column."""

    ratio: int
    """Lower edge in percent."""
    num_samples: int
    similarity: tuple[float, ...]
    """By layer."""
    agreement: tuple[float, ...]
    """By depth, 0..L: of prompts with and without turns behind the prefix, the lower mean."""

    def published_depth(self, config: ProfileConfig) -> int:
        """Leading layers with similar K/V, whatever the layer behind them says."""
        return len(list(takewhile(lambda cosine: cosine > config.theta, self.similarity)))


@dataclass(frozen=True)
class Profile:
    """What was measured, and the two tables that follow: ours, and the published rule's."""

    config: ProfileConfig
    buckets: tuple[Bucket, ...]

    @property
    def table(self) -> dict[int, int]:
        """Depths by ratio, stored where they change; below the first bucket nothing is reused.

        The smaller a prefix's share, the more weight what follows it has: agreement rises with the ratio. So each
        depth's agreements are fitted by a rising curve first, and the samples of one bucket support the others.
        """
        weights = [bucket.num_samples for bucket in self.buckets]
        fitted = zip(
            *(rising(column, weights) for column in zip(*(one.agreement for one in self.buckets), strict=True)),
            strict=True,
        )
        table = {0: 0}
        for bucket, agreement in zip(self.buckets, fitted, strict=True):
            depth = num_leading(agreement[1:], self.config.agreement)
            if depth != list(table.values())[-1] or bucket.ratio == 0:
                table[bucket.ratio] = depth
        return table

    @property
    def published_table(self) -> dict[int, int]:
        """A ratio is stored only where its depth exceeds that of all smaller ones."""
        table: dict[int, int] = {}
        for bucket in self.buckets:
            depth = bucket.published_depth(self.config)
            if depth > max(table.values(), default=0):
                table[bucket.ratio] = depth
        return table

    def save(self, path: Path) -> None:
        """As the model loader reads it (`table`), with the evidence."""
        content = {
            "table": self.table,
            "published_rule": self.published_table,
            "config": asdict(self.config),
            "buckets": [asdict(bucket) for bucket in self.buckets],
        }
        path.write_text(json.dumps(content, indent=1) + "\n")


class Profiler:
    """Measures one model."""

    def __init__(self, model: DiffusionLM, device: torch.device) -> None:
        self._model, self._device = model, device
        self._num_layers = model.config.num_layers

    @torch.inference_mode()
    def measure(self, sample: ProfileSample) -> Measurement:
        """One sample's evidence: `NUM_LEVELS` exact passes, and as many at every depth."""
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
            surer, expected, rest = surer_half(masked, self._logits(exact, masked))
            for depth, reused in enumerate(self._reused(tokens, states, alone_kv)):
                predicted = self._logits(reused, surer - prefix).argmax(-1)
                telling = (expected != config.eos_token_id) | (predicted != config.eos_token_id)
                agreeing[depth] += int(((predicted == expected) & telling).sum())
                compared[depth] += int(telling.sum())
            tokens[surer], masked = expected, rest
        agreement = (same / all_ if all_ else 1.0 for same, all_ in zip(agreeing, compared, strict=True))
        return Measurement(sample.ratio, tuple(similarity), tuple(agreement), sample.has_turns_behind)

    def _reused(self, tokens: Tensor, states: Sequence[Tensor], alone: Sequence[KV]) -> Iterable[Tensor]:
        """The suffix's last hidden states under reuse of 0, 1, ..., L layers."""
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
        """Rows at positions start... through `layers` -> the states after each; their K/V are added to `kept`.

        The rows see each other and, where given, each layer's K/V `before` them.
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


def num_leading(shares: Sequence[float], least: float) -> int:
    """Return how many shares there are before the first that is under `least`."""
    return len(list(takewhile(lambda share: share >= least, shares)))


def rising(values: Sequence[float], weights: Sequence[int]) -> list[float]:
    """Return the sequence that never falls with the least weighted squares of differences to `values`.

    Pool adjacent violators (Ayer et al. 1955): neighbours that fall are replaced by their weighted mean.
    """
    pools: list[tuple[float, int, int]] = []  # mean, weight, number of values
    for value, weight in zip(values, weights, strict=True):
        mean, total, count = value, weight, 1
        while pools and pools[-1][0] > mean:
            before, its_weight, its_count = pools.pop()
            mean = (before * its_weight + mean * total) / (its_weight + total)
            total, count = total + its_weight, count + its_count
        pools.append((mean, total, count))
    return [mean for mean, _, count in pools for _ in range(count)]


def surer_half(masked: Tensor, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The half of the masked positions that is predicted more confidently, its tokens, and the other half."""
    confidence, chosen = logits.softmax(-1).max(-1)
    order = confidence.argsort(descending=True, stable=True)
    surer, rest = order[: (len(order) + 1) // 2], order[(len(order) + 1) // 2 :]
    return masked[surer], chosen[surer], masked[rest.sort().values]


def cosine(a: KV, b: KV, num_tokens: int) -> float:
    """Mean over tokens, K and V of the cosine over the flattened heads of a token."""
    pairs = zip(a, b, strict=True)
    return sum(F.cosine_similarity(x.flatten(1), y[:num_tokens].flatten(1)).mean().item() for x, y in pairs) / 2


def profile(measurements: Iterable[Measurement], config: ProfileConfig) -> Profile:
    """Gather measurements into buckets of ratios."""
    groups: defaultdict[int, list[Measurement]] = defaultdict(list)
    for measurement in measurements:
        groups[measurement.ratio // config.bucket_percent * config.bucket_percent].append(measurement)
    return Profile(config, tuple(bucket_of(ratio, group) for ratio, group in sorted(groups.items())))


def bucket_of(ratio: int, group: Sequence[Measurement]) -> Bucket:
    kinds = [[one for one in group if one.has_turns_behind is kind] for kind in (False, True)]
    agreements = [means(one.agreement for one in kind) for kind in kinds if kind]
    return Bucket(
        ratio=ratio,
        num_samples=len(group),
        similarity=means(measurement.similarity for measurement in group),
        agreement=tuple(map(min, zip(*agreements, strict=True))),
    )


def means(rows: Iterable[tuple[float, ...]]) -> tuple[float, ...]:
    """Column by column."""
    return tuple(round(fmean(column), 4) for column in zip(*rows, strict=True))


def profile_model(
    model: DiffusionLM,
    samples: Iterable[ProfileSample],
    config: ProfileConfig,
    *,
    device: torch.device,
    on_sample: Callable[[], None] = lambda: None,
) -> Profile:
    """Measure `samples` and make the tables; `on_sample` is called after each, for a progress bar."""
    profiler = Profiler(model, device)
    measurements = []
    for sample in samples:
        if 0 < sample.prefix <= len(sample.token_ids) - model.config.prediction_shift:
            measurements.append(profiler.measure(sample))
        on_sample()
    return profile(measurements, config)
