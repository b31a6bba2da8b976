"""Measures how many answers a cache policy costs: exact match by model, policy and reuse depth against policy `none`.

Every setting answers the same held-out questions (canvas 32, 16 steps), so that differences are paired: their interval
comes from the questions on which the two disagree. The canvas is one block with one refresh, or eight blocks of 4 with
a refresh due at each, so that anchors and skipped refreshes have work to save. A question is the first one about its
sheet, or a turn of a conversation of four, whose prompt is cut where the server would cut it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice, repeat
from pathlib import Path
from statistics import fmean
from typing import Annotated

import torch
import typer
from rich.progress import Progress
from tokenizers import Tokenizer

from benchmarks.drive import Answer, Platform, drive
from benchmarks.fidelity_settings import BESIDE_NONE, MODELS, NOT_QUICK, ONE_BLOCK, Blocks, Load, Setting, settings_of
from benchmarks.report import Bar, Report, Row
from workers.api import GenerateRequest
from workers.bicache.profile.report import parallel_map
from workers.config import BiCacheConfig
from workers.models.bundle import model_directory
from workers.models.factbook.evaluate import wilson
from workers.models.factbook.samples import ConversationSample, evaluation_conversations, evaluation_samples
from workers.models.loader import LoadedModel

CONFIDENCE_Z = 1.96
ALLOWED_LOSS_POINTS = 0.5
ALLOWED_WIDTH_POINTS = 1.0
GROUP = 32
"""Number of questions that one engine answers."""
QUICK_QUESTIONS, QUICK_DRAWN, QUICK_CONVERSATIONS = 8, 64, 1
"""With --quick the questions are those with the shortest sheets among the first 64."""
NUM_TURNS = 4


@dataclass(frozen=True)
class Answers:
    """Holds one setting's answers to all questions, and their costs."""

    setting: Setting
    token_ids: tuple[tuple[int, ...], ...]
    correct: tuple[bool, ...]
    num_forwards: int
    reuse_depth: float
    """Mean over the questions."""
    elapsed_s: float


Groups = Iterator[list[Answer]]


@cache
def load(platform: Platform, name: str) -> LoadedModel:
    """Load the model once in each process."""
    return platform.load(name)


def answer_group(
    platform: Platform, name: str, batch: int, cut_share: float, requests: Sequence[GenerateRequest]
) -> list[Answer]:
    """Answer a group in an engine of its own, so that groups may run in several processes."""
    return drive(
        platform.build_engine(load(platform, name), batch=batch, bicache=BiCacheConfig(cut_share=cut_share)), requests
    )


class Bench:
    """Puts the same questions to one model on one device under all settings."""

    def __init__(
        self,
        name: str,
        platform: Platform,
        batch: int,
        *,
        num_questions: int,
        num_drawn: int,
        num_conversations: int,
        run: Callable[..., Groups] = map,
    ) -> None:
        """Ask about the shortest `num_questions` of the first `num_drawn` sheets; `run` is `map`, or that of a pool."""
        self.name, self._platform, self._batch, self._run = name, platform, batch, run
        tokenizer = Tokenizer.from_file(str(model_directory(name) / "tokenizer.json"))
        drawn = sorted(evaluation_samples(tokenizer, num_drawn), key=lambda sample: len(sample.prefix))
        chats = evaluation_conversations(tokenizer, num_conversations, NUM_TURNS)
        self.turns: Mapping[Load, list[ConversationSample]] = {
            "questions": [
                ConversationSample([*one.prefix, *one.suffixes[0]], [len(one.prefix)], one.answers[0])
                for one in drawn[:num_questions]
            ],
            "conversations": [turn for chat in chats for turn in chat],
        }

    def answer(self, setting: Setting, progress: Progress) -> Answers:
        """Answer all questions, `batch` at a time, with the engine that the server uses."""
        what = f"{setting.load}: {self.name} {setting.name}, depth {setting.depth_name}"
        turns = self.turns[setting.load]
        task = progress.add_task(f"{what}, blocks of {setting.blocks.length}", total=len(turns))
        started = time.perf_counter()
        fingerprint = load(self._platform, self.name).fingerprint
        requests = (setting.make_request(turn, str(index), fingerprint) for index, turn in enumerate(turns))
        groups = iter(lambda: tuple(islice(requests, GROUP)), ())
        answered: list[Answer] = []
        shared = (repeat(self._platform), repeat(self.name), repeat(self._batch), repeat(setting.cut_share))
        for group in self._run(answer_group, *shared, groups):
            answered += group
            progress.advance(task, len(group))
        elapsed_s = time.perf_counter() - started
        return Answers(
            setting=setting,
            token_ids=tuple(answer.token_ids for answer in answered),
            correct=tuple(list(answer.token_ids) == turn.answer for answer, turn in zip(answered, turns, strict=True)),
            num_forwards=sum(answer.usage.num_forwards for answer in answered),
            reuse_depth=fmean(answer.usage.reuse_depth for answer in answered),
            elapsed_s=elapsed_s,
        )


def row(model: str, answers: Answers, baseline: Answers) -> Row:
    """Return one line of the table; `points` is its difference in exact match from policy `none`."""
    total = len(answers.correct)
    low, high = wilson(sum(answers.correct), total)
    points, spread = paired_difference(answers.correct, baseline.correct)
    return {
        "model": model,
        "load": answers.setting.load,
        "cut_share": answers.setting.cut_share,
        "policy": answers.setting.name,
        "block": answers.setting.blocks.length,
        "depth": answers.setting.depth_name,
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
    """Return the mean difference in percentage points, and the half width of its normal 95 % interval."""
    differences = torch.tensor(ours, dtype=torch.float64) - torch.tensor(theirs, dtype=torch.float64)
    error = differences.std(correction=0).item() / len(differences) ** 0.5
    return 100 * differences.mean().item(), 100 * CONFIDENCE_Z * error


def agreement(ours: Sequence[tuple[int, ...]], theirs: Sequence[tuple[int, ...]]) -> float:
    """Return the fraction of positions with the same token, over the longer of each two answers."""
    same = sum(a == b for mine, other in zip(ours, theirs, strict=True) for a, b in zip(mine, other, strict=False))
    return same / max(1, sum(max(len(mine), len(other)) for mine, other in zip(ours, theirs, strict=True)))


def bars(rows: Sequence[Row]) -> list[Bar]:
    """Return bars by which the plain model fails under naive reuse and the published rule, and others lose little."""
    questions = [row for row in rows if row["load"] == "questions"]
    exact_without = {(row["model"], row["block"]): row["exact_match"] for row in questions if row["policy"] == "none"}
    found: list[Bar] = []
    for row in questions:
        model, policy, block, depth = row["model"], row["policy"], row["block"], row["depth"]
        what = f"{model}: {policy}, blocks of {block}"
        if policy == "none" and block == ONE_BLOCK.length:
            found.append(Bar(f"{model}: exact match without cache, %", row["exact_match"], ">=", 95.0))
        elif policy == "prefix-naive" and model == "factbook-plain":
            share = row["exact_match"] / exact_without[model, block]
            found.append(Bar(f"{model}: exact match under naive reuse, share of none", share, "<=", 0.5))
        elif depth == "published" and model == "factbook-plain":
            found.append(Bar(f"{model}: points of the published rule", row["points"], "<", -ALLOWED_LOSS_POINTS))
        elif depth == "profile" and policy in ("bicache", "lean", "lean+skip-refresh"):
            found.append(Bar(f"{what}: points against none", row["points"], ">=", -ALLOWED_LOSS_POINTS))
            found.append(Bar(f"{what}: width of their interval", 2 * row["points_ci95"], "<", ALLOWED_WIDTH_POINTS))
    return found + [bar for row in rows if row["load"] == "conversations" for bar in conversation_bars(row)]


def conversation_bars(row: Row) -> Iterator[Bar]:
    """Yield the bars of the server's default policy, on prompts that are cut as the server cuts them."""
    if (row["policy"], row["depth"], row["cut_share"]) == ("lean", "profile", BiCacheConfig.cut_share):
        what = f"{row['model']}: lean, turns of conversations"
        yield Bar(f"{what}: points against none", row["points"], ">=", -ALLOWED_LOSS_POINTS)


def main(
    quick: Annotated[
        bool, typer.Option("--quick", help="Measure few questions and settings, under 45 s on 2 cores.")
    ] = False,
    json: Annotated[Path | None, typer.Option(help="Write the results to this file.")] = None,
    model: Annotated[list[str], typer.Option(help="Bundled models to measure.")] = MODELS,
    policy: Annotated[
        list[str] | None, typer.Option(help=f"Policies beside `none`, among {', '.join(BESIDE_NONE)}.")
    ] = None,
    questions: Annotated[int | None, typer.Option(help="Number of questions a setting (2000; 8 with --quick).")] = None,
    conversations: Annotated[
        int | None, typer.Option(help="Number of conversations of four turns (650; 1 with --quick).")
    ] = None,
    sweep: Annotated[bool, typer.Option(help="Measure fixed reuse depths and the published rule's, too.")] = True,
    device: Annotated[str, typer.Option(help="Device: cpu or cuda.")] = "cuda" if torch.cuda.is_available() else "cpu",
    dtype: Annotated[str, typer.Option(help="Type: float32 or bfloat16.")] = "float32",
    batch: Annotated[int, typer.Option(help="Number of requests that an engine runs together.")] = 8,
    jobs: Annotated[int, typer.Option(help="Number of processes of one thread that divide the questions.")] = 1,
) -> None:
    """Measure exact match by model, policy and reuse depth, as a table and JSON."""
    num_questions = (QUICK_QUESTIONS if quick else 2000) if questions is None else questions
    policies = policy or [name for name in BESIDE_NONE if not (quick and name in NOT_QUICK)]
    if unknown := [name for name in policies if name not in BESIDE_NONE]:
        raise typer.BadParameter(
            f"{unknown[0]!r} is unknown; choose among {', '.join(BESIDE_NONE)}", param_hint="--policy"
        )
    platform = Platform(torch.device(device), getattr(torch, dtype))
    device_name = platform.device_name
    rows: list[Row] = []
    num_drawn = max(num_questions, QUICK_DRAWN) if quick else num_questions
    num_conversations = (QUICK_CONVERSATIONS if quick else 650) if conversations is None else conversations
    with Progress(transient=True) as progress, parallel_map(jobs) as run:
        for name in model:
            bench = Bench(
                name,
                platform,
                batch,
                num_questions=num_questions,
                num_drawn=num_drawn,
                num_conversations=num_conversations,
                run=run,
            )
            baselines: dict[tuple[Load, Blocks], Answers] = {}
            for setting in settings_of(name, policies=policies, sweep=sweep and not quick):
                if not bench.turns[setting.load]:
                    continue
                answers = bench.answer(setting, progress)
                rows.append(row(name, answers, baselines.setdefault(setting.baseline, answers)))
                report = Report("fidelity", rows, bars(rows), device_name)
                if json:  # keeps what an interrupted run has measured
                    report.write(json)
    report.print()


if __name__ == "__main__":
    typer.run(main)
