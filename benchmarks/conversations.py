"""Prompt tokens that conversations find cached, by the rule that says where a prompt is cut.

Chats of several turns about fact sheets, each turn once the one before it is answered. `longest held` is the rule of a
cache that takes the longest prefix which it happens to hold, and else makes an entry of the longest one: it finds much,
and lets what others asked decide how a request is answered. All figures but the engine's own come from a cache without
a limit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from tokenizers import Tokenizer

from benchmarks.drive import Place, drive
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
LEAST_SHARE = 0.9
LEAST_RATIO = 30
"""A prefix of a smaller share was not reused under the rule `longest held`."""
MAX_BOUNDARIES = 4
"""Boundaries that the rule `longest held` looks at: the first and the latest."""
SHARES = (BiCacheConfig.cut_share, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Load:
    """`num_talks` conversations of `num_turns` turns about each of `num_sheets` sheets."""

    num_sheets: int
    num_talks: int
    num_turns: int

    @property
    def name(self) -> str:
        return f"{self.num_talks} a sheet, {self.num_turns} turns"


LOADS = (Load(24, 1, 4), Load(8, 4, 4), Load(12, 1, 12), Load(4, 4, 12))
QUICK_LOADS = (Load(3, 2, 4), Load(1, 2, 12))


@dataclass(frozen=True)
class Prompt:
    """One turn of one conversation."""

    token_ids: tuple[int, ...]
    boundaries: tuple[int, ...]

    @property
    def prefixes(self) -> list[tuple[int, ...]]:
        return [self.token_ids[:length] for length in self.boundaries]


def prompts(load: Load) -> Iterator[Prompt]:
    """Yield the load's prompts in the order in which they are asked."""
    writer = SampleWriter(Tokenizer.from_file(str(model_directory(MODEL) / "tokenizer.json")), 0, Split.EVALUATION)
    for _ in range(load.num_sheets):
        sheet: list[int] = []
        for _ in range(load.num_talks):
            turns = writer.draw_conversation(load.num_turns, max_people=20)
            own = turns[0].boundaries[0]
            sheet = sheet or turns[0].token_ids[:own]
            for turn in turns:
                boundaries = tuple(length - own + len(sheet) for length in turn.boundaries)
                yield Prompt((*sheet, *turn.token_ids[own:]), boundaries)


def longest_held(asked: Sequence[Prompt]) -> int:
    """Return the prompt tokens found cached by the rule of that name."""
    held: set[tuple[int, ...]] = set()
    cached = 0
    for prompt in asked:
        prefixes = prompt.prefixes
        candidates = prefixes[:1] + prefixes[1:][1 - MAX_BOUNDARIES :]
        total = len(prompt.token_ids) + CANVAS
        usable = (prefix for prefix in reversed(candidates) if ratio_percent(len(prefix), total) >= LEAST_RATIO)
        found = next((prefix for prefix in usable if prefix in held), None)
        cached += len(found or ())
        if found is None:
            held.add(candidates[-1])
    return cached


def by_share(share: float) -> Callable[[Sequence[Prompt]], int]:
    def cached(asked: Sequence[Prompt]) -> int:
        held: set[tuple[int, ...]] = set()
        total = 0
        for prompt in asked:
            prefix = prompt.token_ids[: cut_length(prompt.boundaries, share)]
            total += len(prefix) if prefix in held else 0
            held.add(prefix)
        return total

    return cached


def through_the_engine(asked: Sequence[Prompt]) -> int:
    """Return the prompt tokens that the engine says it found cached, one request after the other."""
    place = Place(torch.device("cpu"), torch.float32)
    loaded = place.load(MODEL)
    engine = place.engine(loaded, batch=1)
    params = DecodingParams(num_steps=1, block_length=CANVAS)
    cached = 0
    for number, prompt in enumerate(asked):
        keys = prefix_keys(engine.fingerprint, "", prompt.token_ids, prompt.boundaries)
        prefixes = tuple(map(PrefixCandidate, prompt.boundaries, keys))
        [answered] = drive(engine, [GenerateRequest(str(number), prompt.token_ids, CANVAS, prefixes, params)])
        cached += answered.usage.cached_tokens
    return cached


def rows_of(load: Load) -> Iterator[Row]:
    asked = list(prompts(load))
    num_tokens = sum(len(prompt.token_ids) for prompt in asked)
    rules: dict[str, Callable[[Sequence[Prompt]], int]] = {"longest held": longest_held}
    rules |= {f"share {share:.2f}": by_share(share) for share in SHARES} | {"engine": through_the_engine}
    for name, rule in rules.items():
        cached = rule(asked)
        yield {
            "load": load.name,
            "rule": name,
            "requests": len(asked),
            "prompt_tokens": num_tokens,
            "cached_tokens": cached,
            "cached_share": cached / num_tokens,
        }


def bars(rows: Sequence[Row]) -> Iterator[Bar]:
    found = {(row["load"], row["rule"]): row["cached_tokens"] for row in rows}
    for load in dict.fromkeys(row["load"] for row in rows):
        share = found[load, "engine"] / found[load, "longest held"]
        yield Bar(f"{load}: cached tokens of the engine, share of longest held", share, ">=", LEAST_SHARE)


def main(
    quick: Annotated[bool, typer.Option("--quick", help="Small loads: seconds.")] = False,
    json: Annotated[Path | None, typer.Option(help="Write the results to this file.")] = None,
) -> None:
    """Cached tokens by rule and load, as a table and JSON."""
    place = Place(torch.device("cpu"), torch.float32)
    rows = [row for load in (QUICK_LOADS if quick else LOADS) for row in rows_of(load)]
    report = Report("conversations", rows, list(bars(rows)), place.device_name)
    report.print()
    if json:
        report.write(json)


if __name__ == "__main__":
    typer.run(main)
