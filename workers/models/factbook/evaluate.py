"""Measures exact match on held-out questions by model, suite, reuse depth, and groups such as the question's kind.

    python -m workers.models.factbook.evaluate CHECKPOINT [CHECKPOINT ...] [--count 2000] [--quick] [--json FILE]

It decodes as the server does by default: blocks of 32, two tokens a step, temperature 0. Suites (`suites.py`) ask first
questions, made-up names, later turns, one-word questions, raw text, and long canvases. The first `depth` layers of a
row use the prefix computed alone; the deeper ones are recomputed every `interval` steps. Depth 0 with interval 1 means
no cache, a depth of all layers naive reuse.
"""

import argparse
import json
import logging
import math
import os
import platform
import shlex
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from workers.models.factbook.checkpoint import load_checkpoint
from workers.models.factbook.decode import Reuse, answers
from workers.models.factbook.suites import CANVASES, NUM_TURNS, Suite, suites

log = logging.getLogger("factbook.evaluate")

_ROOT = Path(__file__).resolve().parents[3]


def wilson(num_hits: int, total: int) -> tuple[float, float]:
    """Return the 95 % interval of a proportion (Wilson 1927)."""
    z, p = 1.96, num_hits / total
    centre = p + z * z / (2 * total)
    spread = z * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total))
    return (centre - spread) / (1 + z * z / total), (centre + spread) / (1 + z * z / total)


def score_row(model: str, suite: Suite, reuse: Reuse, answers: Sequence[list[int]]) -> dict[str, Any]:
    """Return one row of the results: exact match over all and by group, each with its number of questions.

    If the suite lists words, the row says in how many answers all of them are spelled right.
    """
    matches = [answer == sample.answers[0] for answer, sample in zip(answers, suite.samples, strict=True)]
    num_hits = sum(matches)
    low, high = wilson(num_hits, len(matches))
    row: dict[str, Any] = {"model": model, "suite": suite.name, "depth": reuse.depth, "interval": reuse.interval}
    row |= {"questions": len(matches), "exact_match": num_hits / len(matches), "ci95": [round(low, 4), round(high, 4)]}
    if suite.words:
        spelled = [all(holds(answer, word) for word in own) for answer, own in zip(answers, suite.words, strict=True)]
        row["words_right"] = sum(spelled) / len(spelled)
    for name, names in suite.groups.items():
        groups: dict[str, list[bool]] = defaultdict(list)
        for group, match in zip(names, matches, strict=True):
            groups[group].append(match)
        row[name] = {key: [round(sum(v) / len(v), 4), len(v)] for key, v in sorted(groups.items())}
    return row


def holds(answer: Sequence[int], word: Sequence[int]) -> bool:
    """Return whether the tokens of `word` stand in `answer`, one behind the other."""
    return any(answer[start : start + len(word)] == word for start in range(len(answer) - len(word) + 1))


def evaluate(
    directory: Path,
    num_questions: int,
    device: str,
    dtype: torch.dtype,
    only: Sequence[str] = (),
    depth: int | None = None,
) -> list[dict[str, Any]]:
    """Return one checkpoint's rows, of the suites whose names contain one of `only`, or of all.

    If `depth` is given, only rows of that reuse depth are measured.
    """
    model, tokenizer = load_checkpoint(directory, device, dtype)
    config = model.config
    rows = []
    for suite in suites(tokenizer, config.num_layers, num_questions, only):
        for reuse in suite.reuses:
            if depth not in (None, reuse.depth):
                continue
            start = time.monotonic()
            found = answers(
                model, suite.samples, config.mask_token_id, config.eos_token_id, reuse, suite.batch_size, suite.schedule
            )
            rows.append(score_row(directory.name, suite, reuse, found))
            groups = next(value for key, value in rows[-1].items() if key.startswith("by_"))
            log.info(
                "%-14s %-38s depth %2d interval %2d: %6.2f %% of %4d in %3.0f s  %s",
                directory.name, suite.name, reuse.depth, reuse.interval, 100 * rows[-1]["exact_match"], len(found),
                time.monotonic() - start,
                ", ".join(f"{key} {100 * share:.0f}" for key, (share, _) in groups.items()),
            )  # fmt: skip
    return rows


# Least exact match of a suite's group without a cache; a group of None is the whole suite.
_BOUNDS: tuple[tuple[str, str | None, str | None, float], ...] = (
    ("questions", None, None, 0.95),
    *((f"canvas {canvas}", None, None, 0.95) for canvas in CANVASES),
    *(("turns, cut behind the sheet", "by_turn", f"turn {turn + 1}", 0.95) for turn in range(NUM_TURNS)),
    *(
        (f"one-word questions, {form}", "by_word", word, 0.85 if word == "how many" else 0.95)
        for form in ("sentence", "one word", "slot")
        for word in ("yes or no", "who", "where", "how many")
    ),
    ("raw text", None, None, 0.9),
    ("holes", None, None, 0.9),
    ("end of text", None, None, 0.95),
)


def bars(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the bars of each model that the rows hold."""
    out: list[dict[str, Any]] = []

    def add(name: str, value: float, op: str, bound: float) -> None:
        holds = value >= bound if op == ">=" else value <= bound
        out.append({"name": name, "value": round(value, 4), "op": op, "bound": round(bound, 4), "holds": holds})

    for model in dict.fromkeys(row["model"] for row in rows):
        own = {(row["suite"], row["depth"], row["interval"]): row for row in rows if row["model"] == model}
        for (suite, depth, _), measured in own.items():
            if "words_right" in measured:
                add(f"{model}: {suite} spelled right at depth {depth}", measured["words_right"], ">=", 0.97)
        for suite, grouping, group, bound in _BOUNDS:
            row = own.get((suite, 0, 1))
            if row and (grouping is None or group in row[grouping]):
                value = row[grouping][group][0] if grouping else row["exact_match"]
                add(f"{model}: {suite}{f', {group}' if group else ''}", value, ">=", bound)
        reused = [(key, row["exact_match"]) for key, row in own.items() if key[1] > 0 and key[2] > 1]
        for (suite, depth, _), value in reused:
            if not (row := own.get((suite, 0, 1))):
                continue
            if model == "factbook-plain":
                if suite == "questions":
                    add(f"{model}: {suite} at depth {depth}", value, "<=", 0.5 * row["exact_match"])
            else:
                add(f"{model}: {suite} at depth {depth}", value, ">=", row["exact_match"] - 0.01)
    return out


def recorded_command(arguments: Sequence[str]) -> str:
    """Return the command to record: it repeats the evaluation, and names no directory of this machine.

    An absolute path becomes relative to the project's root; one that leads elsewhere keeps its last component alone.
    """
    return shlex.join(("python", "-m", "workers.models.factbook.evaluate", *map(_portable, arguments)))


def _portable(argument: str) -> str:
    option, equals, value = argument.partition("=") if argument.startswith("-") else ("", "", argument)
    path = Path(value)
    if not path.is_absolute():
        return argument
    path = path.resolve()
    return f"{option}{equals}{path.relative_to(_ROOT) if path.is_relative_to(_ROOT) else path.name}"


def _commit() -> str:
    if named := os.environ.get("PALIMPSEST_COMMIT"):
        return named
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def main() -> None:
    """Evaluate the checkpoints, log one line a row, and write the JSON file if one is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", type=Path, nargs="+", help="checkpoint directories")
    parser.add_argument("--count", type=int, default=2000, help="number of first questions; other suites have fewer")
    parser.add_argument("--quick", action="store_true", help="measure few questions, for a CPU")
    parser.add_argument("--only", nargs="*", default=[], help="measure suites whose names contain one of these")
    parser.add_argument("--depth", type=int, help="measure rows of this reuse depth alone")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="type of the weights")
    parser.add_argument("--commit", default=_commit(), help="commit to record, where git is not available")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    dtype: torch.dtype = getattr(torch, args.dtype)
    count = 4 if args.quick else args.count
    rows = [
        row for path in args.checkpoints for row in evaluate(path, count, args.device, dtype, args.only, args.depth)
    ]
    results = {
        "benchmark": "factbook-train",
        "device": torch.cuda.get_device_name() if args.device == "cuda" else platform.processor() or platform.machine(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "commit": args.commit,
        "command": recorded_command(sys.argv[1:]),
        "rows": rows,
        "bars": bars(rows),
    }
    for bar in results["bars"]:
        log.info(
            "%s %s: %s %s %s", "  " if bar["holds"] else "no", *(bar[key] for key in ("name", "value", "op", "bound"))
        )
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
