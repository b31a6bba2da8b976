"""What a cache policy costs in answers: exact match by model, policy and reuse depth, against policy `none`.

Every configuration answers the same held-out questions (canvas 32, 16 steps), so differences are paired: their
interval comes from the questions on which the two disagree.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Annotated

import torch
import typer
from rich.progress import Progress
from tokenizers import Tokenizer

from benchmarks.drive import Answered, Place, drive
from benchmarks.report import Bar, Report, Row, cpu_name
from cache_service.hashing import prefix_keys
from workers.api import DecodingParams, GenerateRequest, PrefixCandidate
from workers.models.bundle import model_directory
from workers.models.factbook.evaluate import wilson
from workers.models.factbook.samples import CANVAS, Sample, evaluation_samples

NUM_STEPS = 16
CONFIDENCE_Z = 1.96
ALLOWED_LOSS_POINTS = 0.5
ENTRIES = 32
"""Prefixes that an engine's default budget holds together, the longest sheets included."""


@dataclass(frozen=True)
class Setting:
    """One row: a policy, and the reuse depth where it isn't the profile's own."""

    policy: str
    depth: int | None = None


SWEEP = tuple(Setting("bicache", depth) for depth in (0, 1, 2, 4, 6, 8, 10))
MODELS = ["factbook", "factbook-plain"]
POLICIES = ["prefix-naive", "bicache", "lean"]


@dataclass(frozen=True)
class Answers:
    """What one setting answered to every question, and what that took."""

    setting: Setting
    token_ids: tuple[tuple[int, ...], ...]
    correct: tuple[bool, ...]
    num_forwards: int
    reuse_depth: float
    """Mean over the questions."""
    elapsed_s: float


class Bench:
    """One model on one device, and the questions that all settings answer."""

    def __init__(self, name: str, num_questions: int, place: Place, batch: int) -> None:
        self.name, self._place, self._batch = name, place, batch
        tokenizer = Tokenizer.from_file(str(model_directory(name) / "tokenizer.json"))
        self.samples: list[Sample] = list(evaluation_samples(tokenizer, num_questions))

    def answer(self, setting: Setting, progress: Progress) -> Answers:
        """All questions, `batch` at a time, through the engine that serves."""
        loaded = self._place.load(self.name)
        task = progress.add_task(f"{self.name} {setting.policy} {setting.depth or ''}", total=len(self.samples))
        started = time.perf_counter()
        answered: list[Answered] = []
        requests = self._requests(setting, loaded.fingerprint)
        while group := tuple(islice(requests, ENTRIES)):  # an engine that is full keeps no entry for a new prefix
            engine = self._place.engine(loaded, batch=self._batch)
            answered += drive(engine, group, on_answer=lambda: progress.advance(task))
        elapsed_s = time.perf_counter() - started
        return Answers(
            setting=setting,
            token_ids=tuple(answer.token_ids for answer in answered),
            correct=tuple(
                list(answer.token_ids) == sample.answers[0]
                for answer, sample in zip(answered, self.samples, strict=True)
            ),
            num_forwards=sum(answer.usage.num_forwards for answer in answered),
            reuse_depth=fmean(answer.usage.reuse_depth for answer in answered),
            elapsed_s=elapsed_s,
        )

    def _requests(self, setting: Setting, fingerprint: str) -> Iterator[GenerateRequest]:
        params = DecodingParams(
            num_steps=NUM_STEPS, block_length=CANVAS, policy=setting.policy, reuse_depth=setting.depth
        )
        for index, sample in enumerate(self.samples):
            token_ids = (*sample.prefix, *sample.suffixes[0])
            num_prefix = len(sample.prefix)
            [key] = prefix_keys(fingerprint, "", token_ids, [num_prefix])
            yield GenerateRequest(str(index), token_ids, CANVAS, (PrefixCandidate(num_prefix, key),), params)


def row(model: str, answers: Answers, baseline: Answers) -> Row:
    """One line of the table. `points` are differences of exact match to policy `none`, in percentage points."""
    total = len(answers.correct)
    low, high = wilson(sum(answers.correct), total)
    points, spread = paired_difference(answers.correct, baseline.correct)
    return {
        "model": model,
        "policy": answers.setting.policy,
        "depth": "profile" if answers.setting.depth is None else str(answers.setting.depth),
        "mean_depth": answers.reuse_depth,
        "questions": total,
        "exact_match": 100 * sum(answers.correct) / total,
        "ci95_low": 100 * low,
        "ci95_high": 100 * high,
        "points": points,
        "points_ci95": spread,
        "tokens_equal": 100 * agreement(answers.token_ids, baseline.token_ids),
        "forwards": answers.num_forwards / total,
        "questions_per_s": total / answers.elapsed_s,
    }


def paired_difference(ours: Sequence[bool], theirs: Sequence[bool]) -> tuple[float, float]:
    """Mean difference in percentage points, and the half width of its normal 95 % interval."""
    differences = torch.tensor(ours, dtype=torch.float64) - torch.tensor(theirs, dtype=torch.float64)
    error = differences.std(correction=0).item() / len(differences) ** 0.5
    return 100 * differences.mean().item(), 100 * CONFIDENCE_Z * error


def agreement(ours: Sequence[tuple[int, ...]], theirs: Sequence[tuple[int, ...]]) -> float:
    """Share of positions with the same token, over the longer of each two answers."""
    same = sum(a == b for mine, other in zip(ours, theirs, strict=True) for a, b in zip(mine, other, strict=False))
    return same / max(1, sum(max(len(mine), len(other)) for mine, other in zip(ours, theirs, strict=True)))


def bars(rows: Sequence[Row]) -> list[Bar]:
    """The plain model collapses under naive reuse; on both, a policy that guards its depth keeps what `none` gives."""
    profiled = {(row["model"], row["policy"]): row for row in rows if row["depth"] == "profile"}
    found: list[Bar] = []
    for (model, policy), row in profiled.items():
        exact = row["exact_match"]
        if policy == "none":
            found.append(Bar(f"{model}: exact match without cache, %", exact, ">=", 95.0))
        elif policy == "prefix-naive":
            if model == "factbook-plain":
                share = exact / profiled[model, "none"]["exact_match"]
                found.append(Bar(f"{model}: exact match under naive reuse, share of none", share, "<=", 0.5))
        else:
            found.append(Bar(f"{model}: points of {policy} against none", row["points"], ">=", -ALLOWED_LOSS_POINTS))
    return found


def main(
    quick: Annotated[bool, typer.Option("--quick", help="Few questions and settings: under 45 s on 2 cores.")] = False,
    json: Annotated[Path | None, typer.Option(help="Write the results to this file.")] = None,
    model: Annotated[list[str], typer.Option(help="Bundled models to ask.")] = MODELS,
    policy: Annotated[list[str], typer.Option(help="Policies beside `none`.")] = POLICIES,
    questions: Annotated[int | None, typer.Option(help="Questions per setting (2000; 8 with --quick).")] = None,
    sweep: Annotated[bool, typer.Option(help="Fixed reuse depths too, beyond the profile's own.")] = True,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cuda" if torch.cuda.is_available() else "cpu",
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    batch: Annotated[int, typer.Option(help="Requests that the engine runs together.")] = 8,
) -> None:
    """Exact match by model, policy and reuse depth, as a table and JSON."""
    count = questions or (8 if quick else 2000)
    settings = [Setting("none"), *map(Setting, policy), *(SWEEP if sweep and not quick else ())]
    place = Place(torch.device(device), getattr(torch, dtype))
    named = torch.cuda.get_device_name(place.device) if place.device.type == "cuda" else cpu_name()
    rows: list[Row] = []
    with Progress(transient=True) as progress:
        for name in model:
            bench = Bench(name, count, place, batch)
            baseline: Answers | None = None
            for setting in settings:
                answers = bench.answer(setting, progress)
                baseline = baseline or answers
                rows.append(row(name, answers, baseline))
                report = Report("fidelity", rows, bars(rows), named)
                if json:  # a run of hours is worth keeping where it was cut off
                    report.write(json)
    report.print()


if __name__ == "__main__":
    typer.run(main)
