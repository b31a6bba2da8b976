"""Measures exact match on held-out questions by model, reuse depth, question kind, names and sheet size.

    python -m workers.models.factbook.evaluate CHECKPOINT [CHECKPOINT ...] [--count 2000] [--json FILE]

It decodes a canvas of 32 in 16 steps. The first `depth` layers of a row use the prefix computed alone; the deeper ones
are recomputed every `interval` steps. Depth 0 with interval 1 means no cache, a depth of all layers naive reuse.
"""

import argparse
import json
import logging
import math
import platform
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from workers.models.factbook.checkpoint import load_checkpoint
from workers.models.factbook.decode import Reuse, exact_matches
from workers.models.factbook.entities import ANIMALS, CITIES, NAMES
from workers.models.factbook.samples import Sample, evaluation_samples

log = logging.getLogger("factbook.evaluate")

_LISTED = frozenset((*NAMES, *CITIES, *ANIMALS))
_SIZES = ((4, 10), (11, 20), (21, 30), (31, 40))
_ROOT = Path(__file__).resolve().parents[3]


def wilson(num_hits: int, total: int) -> tuple[float, float]:
    """Return the 95 % interval of a proportion (Wilson 1927)."""
    z, p = 1.96, num_hits / total
    centre = p + z * z / (2 * total)
    spread = z * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total))
    return (centre - spread) / (1 + z * z / total), (centre + spread) / (1 + z * z / total)


def _words(sample: Sample) -> str:
    return "listed" if _LISTED.issuperset(filter(None, sample.questions[0].words)) else "made up"


def _size(sample: Sample) -> str:
    return next(f"{low}-{high}" for low, high in _SIZES if low <= sample.num_people <= high)


_GROUPINGS: dict[str, Callable[[Sample], str]] = {
    "by_kind": lambda sample: sample.questions[0].kind,
    "by_words": _words,
    "by_people": _size,
}


def score_row(model: str, reuse: Reuse, samples: Sequence[Sample], matches: Sequence[bool]) -> dict[str, Any]:
    """Return one row of the results: exact match over all and by group, each with its number of questions."""
    num_hits = sum(matches)
    low, high = wilson(num_hits, len(matches))
    row: dict[str, Any] = {"model": model, "depth": reuse.depth, "interval": reuse.interval, "questions": len(matches)}
    row |= {"exact_match": num_hits / len(matches), "ci95": [round(low, 4), round(high, 4)]}
    for name, group_of in _GROUPINGS.items():
        groups: dict[str, list[bool]] = defaultdict(list)
        for sample, match in zip(samples, matches, strict=True):
            groups[group_of(sample)].append(match)
        row[name] = {key: [round(sum(v) / len(v), 4), len(v)] for key, v in sorted(groups.items())}
    return row


def evaluate(directory: Path, num_questions: int, device: str, dtype: torch.dtype) -> list[dict[str, Any]]:
    """Return one checkpoint's rows: no cache, every depth up to half the layers, and naive reuse."""
    model, tokenizer = load_checkpoint(directory, device, dtype)
    samples = list(evaluation_samples(tokenizer, num_questions))
    layers = model.config.num_layers
    reuses = [
        Reuse(),
        *(Reuse(depth, 16) for depth in range(layers // 2 + 1)),
        Reuse(layers // 2, 1),
        Reuse(layers, 16),
    ]
    rows = []
    for reuse in reuses:
        config = model.config
        matches = exact_matches(model, samples, config.mask_token_id, config.eos_token_id, reuse)
        rows.append(score_row(directory.name, reuse, samples, matches))
        score = rows[-1]["exact_match"]
        log.info("%s at depth %d and interval %d: exact match %.4f", directory.name, reuse.depth, reuse.interval, score)
    return rows


def bars(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the bars of each model that the rows hold."""
    out: list[dict[str, Any]] = []

    def add(name: str, value: float, op: str, bound: float) -> None:
        holds = value >= bound if op == ">=" else value <= bound
        out.append({"name": name, "value": round(value, 4), "op": op, "bound": round(bound, 4), "holds": holds})

    for model in dict.fromkeys(row["model"] for row in rows):
        own = {(row["depth"], row["interval"]): row["exact_match"] for row in rows if row["model"] == model}
        add(f"{model}: exact match without cache", own[0, 1], ">=", 0.95)
        if model == "factbook":
            shallow = min(value for (depth, _), value in own.items() if depth != max(own)[0])
            add(f"{model}: exact match at the worst depth up to half the layers", shallow, ">=", own[0, 1] - 0.01)
        else:
            deepest = max(own)
            add(f"{model}: exact match at reuse depth {deepest[0]}", own[deepest], "<=", 0.5 * own[0, 1])
    return out


def recorded_command(arguments: Sequence[str]) -> str:
    """Return the command to record: it repeats the evaluation, and names no directory of this machine.

    An absolute path becomes relative to the project's root; one that leads elsewhere keeps its last component alone.
    """
    return " ".join(("python -m workers.models.factbook.evaluate", *map(_portable, arguments)))


def _portable(argument: str) -> str:
    option, equals, value = argument.partition("=") if argument.startswith("-") else ("", "", argument)
    path = Path(value)
    if not path.is_absolute():
        return argument
    path = path.resolve()
    return f"{option}{equals}{path.relative_to(_ROOT) if path.is_relative_to(_ROOT) else path.name}"


def _commit() -> str:
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def main() -> None:
    """Evaluate the checkpoints, log one line a row, and write the JSON file if one is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", type=Path, nargs="+", help="checkpoint directories")
    parser.add_argument("--count", type=int, default=2000, help="number of questions")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="type of the weights")
    parser.add_argument("--commit", default=_commit(), help="commit to record, where git is not available")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    dtype: torch.dtype = getattr(torch, args.dtype)
    rows = [row for path in args.checkpoints for row in evaluate(path, args.count, args.device, dtype)]
    results = {
        "benchmark": "factbook-train",
        "device": torch.cuda.get_device_name() if args.device == "cuda" else platform.processor(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "commit": args.commit,
        "command": recorded_command(sys.argv[1:]),
        "rows": rows,
        "bars": bars(rows),
    }
    log.info(json.dumps(results["bars"], indent=1))
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
