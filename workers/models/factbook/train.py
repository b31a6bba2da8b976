"""Trains both checkpoints in one training: a plain trunk, then `factbook-plain` and `factbook` from it.

    python -m workers.models.factbook.train OUT [--minutes 15] [--minutes-per-run 8]

Each phase takes a fraction of the time. `trunk` trains at a constant rate, from the weights of a checkpoint. `plain`
cools the trunk down, with one question or two about a sheet in half of its batches, so that prefix rows see few.
`isolation` continues from the trunk with prefix isolation and cools down as well. A run that ends before the training
does leaves its state in OUT; the same command goes on from there.
"""

import argparse
import json
import logging
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from workers.models.factbook.branches import PackedBatch
from workers.models.factbook.checkpoint import load_checkpoint, new_model, save_checkpoint
from workers.models.factbook.decode import Reuse, exact_matches
from workers.models.factbook.feed import Blend, Feed
from workers.models.factbook.samples import Sample, evaluation_samples
from workers.models.factbook.tokenizer import build_tokenizer
from workers.models.factbook.trainer import Recipe, Trainer
from workers.models.layers import Transformer

log = logging.getLogger("factbook.train")

INITIAL = Path(__file__).parent / "checkpoints" / "factbook-plain"
_REPORT_SECONDS = 90.0
_DEEP_FRACTION = 0.4


@dataclass(frozen=True)
class Phase:
    """A phase of training sets the time, the isolation, the batches and the learning rate."""

    name: str
    time_fraction: float
    isolated: bool
    blend: Blend
    rate: float = 1.0
    """Factor on both learning rates."""
    cool_from: float = 1.0
    """Fraction of the phase after which the rate falls linearly to zero."""
    checkpoint: str = "trunk"
    """Name of the checkpoint that the phase ends with; later phases start from the trunk, where there is one."""

    def rate_at(self, done: float) -> float:
        """Return the factor on the learning rates when a fraction of the phase is done."""
        cooling = max(0.0, min(1.0, (1 - done) / (1 - self.cool_from))) if self.cool_from < 1 else 1.0
        return self.rate * cooling


PHASES = (
    Phase("trunk", 0.42, isolated=False, blend=Blend(turns=0.2, canvases=0.06), rate=0.8),
    Phase(
        "plain", 0.15, isolated=False, blend=Blend(turns=0.4, canvases=0.06), rate=0.8, cool_from=0.0,
        checkpoint="factbook-plain",
    ),
    Phase(
        "isolation", 0.43, isolated=True, blend=Blend(turns=0.3, canvases=0.05), rate=0.8, cool_from=0.4,
        checkpoint="factbook",
    ),
)  # fmt: skip


def draw_depth(rng: random.Random, num_layers: int) -> int:
    """Draw how many layers isolate the prefix: up to half of them in most batches, more in the others."""
    half = num_layers // 2
    return rng.randint(half + 1, num_layers) if rng.random() < _DEEP_FRACTION else rng.randint(0, half)


@dataclass
class Progress:
    """Progress marks where a later run goes on."""

    phase: int = 0
    spent: float = 0.0
    """Seconds of the phase that are over, or steps where steps are counted."""
    seconds: float = 0.0
    """Seconds of training in all phases and runs."""
    tokens: int = 0
    num_runs: int = 0


class Training:
    """Runs the phases of one training, logs its progress, and keeps its state and checkpoints in a directory."""

    def __init__(
        self,
        trainer: Trainer,
        tokenizer: Tokenizer,
        out: Path,
        phases: Sequence[Phase] = PHASES,
        probe: Sequence[Sample] = (),
    ) -> None:
        self.trainer, self.tokenizer, self.out, self.phases, self.probe = trainer, tokenizer, out, phases, probe
        self.progress = Progress()
        self._losses: list[Tensor] = []
        self._start = self._reported = time.monotonic()
        if self._state_file.exists():
            saved = torch.load(self._state_file, map_location=trainer.device, weights_only=True)
            trainer.restore(saved["trainer"])
            self.progress = Progress(**saved["progress"])
        self.progress.num_runs += 1
        self._rng = random.Random(f"{trainer.recipe.seed} {self.progress.num_runs}")
        torch.manual_seed(trainer.recipe.seed + self.progress.num_runs)

    @property
    def _state_file(self) -> Path:
        return self.out / "state.pt"

    @property
    def phase(self) -> Phase | None:
        """Return the phase to go on with; None once the training is over."""
        return self.phases[self.progress.phase] if self.progress.phase < len(self.phases) else None

    def run(
        self,
        draw: Callable[[], PackedBatch],
        set_blend: Callable[[Blend], None],
        amount: float,
        run_seconds: float,
        *,
        counts_steps: bool = False,
    ) -> None:
        """Train on batches that `draw` returns until all phases are over, or for `run_seconds`.

        `amount` is the duration of all phases, in seconds or in steps. The state is saved at the end in both cases.
        """
        total = sum(phase.time_fraction for phase in self.phases)
        while phase := self.phase:
            set_blend(phase.blend)
            if not self._train(phase, draw, amount * phase.time_fraction / total, run_seconds, counts_steps):
                break
            self._end_phase(phase)
        self._save_state()

    def _train(
        self, phase: Phase, draw: Callable[[], PackedBatch], amount: float, run_seconds: float, counts_steps: bool
    ) -> bool:
        """Train until the phase has had its `amount`; return False if the run's time is over before that."""
        progress = self.progress
        while progress.spent < amount:
            if (start := time.monotonic()) - self._start >= run_seconds:
                self._report(phase)
                return False
            depth = draw_depth(self._rng, self.trainer.model.config.num_layers) if phase.isolated else 0
            batch = draw()
            self._losses.append(self.trainer.step(batch, depth, phase.rate_at(progress.spent / amount)))
            if len(self._losses) % 8 == 0:
                self._losses[-1].item()  # without it, steps would be queued far ahead of the clock
            seconds = time.monotonic() - start
            progress.spent += 1 if counts_steps else seconds
            progress.seconds += seconds
            progress.tokens += batch.ids.numel()
            if time.monotonic() - self._reported > _REPORT_SECONDS:
                self._report(phase)
                self._save_state()
        return True

    def _end_phase(self, phase: Phase) -> None:
        """Write the phase's checkpoint, and go on from the trunk."""
        self._report(phase)
        trunk = self.out / "trunk.pt"
        save_checkpoint(self.trainer.model, self.tokenizer, self.out / phase.checkpoint)
        if phase.checkpoint == "trunk":
            torch.save(self.trainer.state(), trunk)
        elif trunk.exists():
            self.trainer.restore(torch.load(trunk, map_location=self.trainer.device, weights_only=True))
        self.progress.phase, self.progress.spent = self.progress.phase + 1, 0.0
        self._save_state()

    def _save_state(self) -> None:
        new = self._state_file.with_suffix(".new")  # a run that is stopped here leaves the last state intact
        torch.save({"trainer": self.trainer.state(), "progress": vars(self.progress)}, new)
        new.replace(self._state_file)

    def _report(self, phase: Phase) -> None:
        if not self._losses:
            return
        progress, num_layers = self.progress, self.trainer.model.config.num_layers
        depths = (0, num_layers // 2, num_layers) if phase.isolated else (0,)
        line = {
            "phase": phase.name, "run": progress.num_runs, "seconds": round(progress.seconds),
            "step": self.trainer.num_steps, "tokens_millions": round(progress.tokens / 1e6),
            "loss": round(torch.stack(self._losses).mean().item(), 4),
            "exact_match": {str(depth): self.score(Reuse(depth)) for depth in depths} if self.probe else {},
        }  # fmt: skip
        log.info(json.dumps(line))
        with (self.out / "train.jsonl").open("a") as lines:
            lines.write(json.dumps(line) + "\n")
        self._losses, self._reported = [], time.monotonic()

    def score(self, reuse: Reuse) -> float:
        """Return the exact match on a small held-out set."""
        config = self.trainer.model.config
        with torch.autocast(self.trainer.device, torch.bfloat16):
            matches = exact_matches(
                self.trainer.model, self.probe, config.mask_token_id, config.eos_token_id, reuse, batch_size=256
            )
        return sum(matches) / len(matches)


def initial_model(directory: Path | None, tokenizer: Tokenizer, seed: int) -> tuple[Transformer, str]:
    """Return the model to train with a description: a checkpoint's weights, or random ones.

    Rows of tokens that the checkpoint's tokenizer lacks are at the end of the vocabulary and stay as they are.
    """
    torch.manual_seed(seed)
    if directory is None:
        return new_model(tokenizer), "random weights"
    return load_checkpoint(directory, "cpu", torch.float32)[0], directory.name


def main() -> None:
    """Train from a checkpoint, or from random weights with `--from-scratch`; go on if OUT holds a training's state."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="directory for state, checkpoints and the log")
    parser.add_argument("--minutes", type=float, default=15.0, help="duration of all phases, in minutes of training")
    parser.add_argument("--minutes-per-run", type=float, default=8.0, help="minutes after which this run ends")
    parser.add_argument("--init", type=Path, default=INITIAL, help="checkpoint directory to start from")
    parser.add_argument("--from-scratch", action="store_true", help="start from random weights")
    names = [phase.name for phase in PHASES]
    parser.add_argument(
        "--phases", nargs="+", choices=names, default=names, help="phases to run, of `--minutes` in all"
    )
    parser.add_argument("--workers", type=int, default=Recipe.num_workers, help="processes that draw batches")
    parser.add_argument("--seed", type=int, default=Recipe.seed, help="seed of data, weights and masks")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_float32_matmul_precision("high")
    args.out.mkdir(parents=True, exist_ok=True)
    recipe = Recipe(num_workers=args.workers, seed=args.seed)
    tokenizer = build_tokenizer()
    model, source = initial_model(None if args.from_scratch else args.init, tokenizer, args.seed)
    probe = list(evaluation_samples(tokenizer, 256, seed=1))
    phases = [phase for phase in PHASES if phase.name in args.phases]
    training = Training(Trainer(model, recipe, "cuda"), tokenizer, args.out, phases, probe)
    if (phase := training.phase) is None:
        log.info("the training in %s is over", args.out)
        return
    log.info("run %d begins in phase %s, from %s", training.progress.num_runs, phase.name, source)
    seed = 1000 * (args.seed + 100 * training.progress.num_runs)
    feed = Feed(tokenizer, recipe.num_workers, recipe.tokens, seed, phase.blend)
    try:
        training.run(feed.next, feed.set_blend, 60 * args.minutes, 60 * args.minutes_per_run)
    finally:
        feed.close()


if __name__ == "__main__":
    main()
