"""Counts the prompt tokens that conversations find cached, by the rule that cuts their prompts.

The load consists of chats of several turns about fact sheets; each turn follows the answer to the one before. `longest
held` is the rule of a cache that takes the longest prefix that it holds, and otherwise builds an entry of the longest
one. It finds much cached, but answers then depend on other requests. All figures but the engine's assume a cache
without a limit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from tokenizers import Tokenizer

from benchmarks.drive import Platform, drive
from benchmarks.report import Bar, Report, Row
from cache_service.core.hashing import prefix_keys
from workers.api import DecodingParams, GenerateRequest, PrefixCandidate
from workers.bicache.cut import cut_length
from workers.bicache.depth import ratio_percent
from workers.config import BiCacheConfig
from workers.models.bundle import model_directory
from workers.models.factbook.people import Split
from workers.models.factbook.samples import SampleWriter

MODEL = "factbook"
CANVAS = 8
MIN_CACHED_FRACTION = 0.9
MIN_RATIO = 30
"""Least ratio in percent at which the rule `longest held` reuses a prefix."""
MAX_BOUNDARIES = 4
"""Number of boundaries that the rule `longest held` considers: the first and the latest ones."""
CUT_SHARES = (BiCacheConfig.cut_share, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Load:
    """Holds `num_chats` conversations of `num_turns` turns about each of `num_sheets` sheets."""

    num_sheets: int
    num_chats: int
    num_turns: int

    @property
    def name(self) -> str:
        return f"{self.num_chats} a sheet, {self.num_turns} turns"


LOADS = (Load(24, 1, 4), Load(8, 4, 4), Load(12, 1, 12), Load(4, 4, 12))
QUICK_LOADS = (Load(3, 2, 4), Load(1, 2, 12))


@dataclass(frozen=True)
class Prompt:
    """Holds the prompt of one turn and its boundaries."""

    token_ids: tuple[int, ...]
    boundaries: tuple[int, ...]

    @property
    def prefixes(self) -> list[tuple[int, ...]]:
        return [self.token_ids[:length] for length in self.boundaries]


def draw_prompts(load: Load) -> Iterator[Prompt]:
    """Draw the load's prompts in the order in which clients send them."""
    writer = SampleWriter(Tokenizer.from_file(str(model_directory(MODEL) / "tokenizer.json")), 0, Split.EVALUATION)
    for _ in range(load.num_sheets):
        sheet: list[int] = []
        for _ in range(load.num_chats):
            turns = writer.draw_conversation(load.num_turns, max_people=20)
            own = turns[0].boundaries[0]
            sheet = sheet or turns[0].token_ids[:own]
            for turn in turns:
                boundaries = tuple(length - own + len(sheet) for length in turn.boundaries)
                yield Prompt((*sheet, *turn.token_ids[own:]), boundaries)


def cached_by_longest_held(prompts: Sequence[Prompt]) -> int:
    """Count the prompt tokens that the rule `longest held` finds cached."""
    held: set[tuple[int, ...]] = set()
    cached = 0
    for prompt in prompts:
        prefixes = prompt.prefixes
        candidates = prefixes[:1] + prefixes[1:][1 - MAX_BOUNDARIES :]
        total = len(prompt.token_ids) + CANVAS
        usable = (prefix for prefix in reversed(candidates) if ratio_percent(len(prefix), total) >= MIN_RATIO)
        found = next((prefix for prefix in usable if prefix in held), None)
        cached += len(found or ())
        if found is None:
            held.add(candidates[-1])
    return cached


def cached_by_cut(cut_share: float) -> Callable[[Sequence[Prompt]], int]:
    def cached(prompts: Sequence[Prompt]) -> int:
        held: set[tuple[int, ...]] = set()
        total = 0
        for prompt in prompts:
            prefix = prompt.token_ids[: cut_length(prompt.boundaries, cut_share)]
            total += len(prefix) if prefix in held else 0
            held.add(prefix)
        return total

    return cached


def cached_by_engine(prompts: Sequence[Prompt]) -> int:
    """Count the prompt tokens that the engine reports as cached, one request after the other."""
    platform = Platform(torch.device("cpu"), torch.float32)
    loaded = platform.load(MODEL)
    engine = platform.build_engine(loaded, batch=1)
    params = DecodingParams(num_steps=1, block_length=CANVAS)
    cached = 0
    for number, prompt in enumerate(prompts):
        keys = prefix_keys(engine.fingerprint, "", prompt.token_ids, prompt.boundaries)
        prefixes = tuple(map(PrefixCandidate, prompt.boundaries, keys))
        [answer] = drive(engine, [GenerateRequest(str(number), prompt.token_ids, CANVAS, prefixes, params)])
        cached += answer.usage.cached_tokens
    return cached


def rows_of(load: Load) -> Iterator[Row]:
    prompts = list(draw_prompts(load))
    num_tokens = sum(len(prompt.token_ids) for prompt in prompts)
    rules: dict[str, Callable[[Sequence[Prompt]], int]] = {"longest held": cached_by_longest_held}
    rules |= {f"share {share:.2f}": cached_by_cut(share) for share in CUT_SHARES} | {"engine": cached_by_engine}
    for name, rule in rules.items():
        cached = rule(prompts)
        yield {
            "load": load.name,
            "rule": name,
            "requests": len(prompts),
            "prompt_tokens": num_tokens,
            "cached_tokens": cached,
            "cached_share": cached / num_tokens,
        }


def bars(rows: Sequence[Row]) -> Iterator[Bar]:
    found = {(row["load"], row["rule"]): row["cached_tokens"] for row in rows}
    for load in dict.fromkeys(row["load"] for row in rows):
        fraction = found[load, "engine"] / found[load, "longest held"]
        yield Bar(f"{load}: cached tokens of the engine, share of longest held", fraction, ">=", MIN_CACHED_FRACTION)


def main(
    quick: Annotated[bool, typer.Option("--quick", help="Measure small loads, for seconds.")] = False,
    json: Annotated[Path | None, typer.Option(help="Write the results to this file.")] = None,
) -> None:
    """Count cached tokens by rule and load, as a table and JSON."""
    platform = Platform(torch.device("cpu"), torch.float32)
    rows = [row for load in (QUICK_LOADS if quick else LOADS) for row in rows_of(load)]
    report = Report("conversations", rows, list(bars(rows)), platform.device_name)
    report.print()
    if json:
        report.write(json)


if __name__ == "__main__":
    typer.run(main)
