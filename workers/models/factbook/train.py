"""Trains both checkpoints in one run: a plain trunk, then `factbook-plain` and `factbook` from it.

    python -m workers.models.factbook.train OUT [--minutes 26]

Each phase takes a fraction of the time. `trunk` trains at a constant rate while sheets grow. `plain` cools the trunk
down, with single questions in half of its batches, so that prefix rows see just one. `isolation` continues from the
trunk with prefix isolation and cools down as well.
"""

import argparse
import json
import logging
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from workers.models.base import Layer
from workers.models.factbook.branches import BRANCH, PackedBatch, TiledMask, layout
from workers.models.factbook.checkpoint import load_checkpoint, new_model, save_checkpoint
from workers.models.factbook.decode import Reuse, exact_matches
from workers.models.factbook.feed import Feed
from workers.models.factbook.muon import Muon
from workers.models.factbook.people import MAX_PEOPLE, MIN_PEOPLE
from workers.models.factbook.samples import CANVAS, Sample, evaluation_samples
from workers.models.factbook.tokenizer import build_tokenizer
from workers.models.layers import Transformer

log = logging.getLogger("factbook.train")


@dataclass(frozen=True)
class Phase:
    """A phase of training sets the time, the isolation and the learning rate."""

    name: str
    time_fraction: float
    isolated: bool
    single_fraction: float
    """Fraction of batches in which a sheet carries a single question."""
    grows: bool = False
    cool_from: float = 1.0
    """Fraction of the phase after which the rate falls linearly to zero."""
    checkpoint: str | None = None


PHASES = (
    Phase("trunk", 0.54, isolated=False, single_fraction=0.12, grows=True),
    Phase("plain", 0.16, isolated=False, single_fraction=0.5, cool_from=0.0, checkpoint="factbook-plain"),
    Phase("isolation", 0.30, isolated=True, single_fraction=0.15, cool_from=0.4, checkpoint="factbook"),
)


@dataclass(frozen=True)
class Recipe:
    """A recipe holds the settings of a run."""

    minutes: float = 26.0
    tokens: int = 106_496
    muon_rate: float = 4e-3
    adam_rate: float = 2e-3
    warmup_steps: int = 200
    growth: float = 0.4
    """Fraction of the growing phase over which sheets grow to MAX_PEOPLE, slowly at first."""
    full_mask_fraction: float = 0.3
    suffix_mask_fraction: float = 0.15
    fill_weight: float = 0.1
    """Loss weight of each EOS after the first."""
    num_workers: int = 14
    seed: int = 1


def corrupt(batch: PackedBatch, canvas: Tensor, recipe: Recipe, mask_id: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return masked ids [B, S], targets and loss weights [B, branches, CANVAS].

    A branch is masked wholly, or from a random position on, or at random with a ratio uniform in (0, 1).
    """
    shape, device = (*canvas.shape[:2], BRANCH), canvas.device
    position = torch.arange(BRANCH, device=device) - batch.suffix_len.unsqueeze(-1)
    draw, ratio = torch.rand(2, *shape[:2], 1, device=device)
    masked = torch.rand(shape, device=device) < ratio
    from_position = draw < recipe.full_mask_fraction + recipe.suffix_mask_fraction
    masked = torch.where(from_position, position >= ratio * CANVAS, masked) | (draw < recipe.full_mask_fraction)
    masked = masked & (position >= 0) & (position < batch.canvas_len.unsqueeze(-1))
    masked_slots = F.pad(masked.flatten(1), (batch.prefix_slots, 0))
    targets = batch.ids.gather(1, canvas.flatten(1)).view(canvas.shape)
    counted = masked_slots.gather(1, canvas.flatten(1)).view(canvas.shape)
    content = torch.arange(CANVAS, device=device) <= batch.answer_len.unsqueeze(-1)
    weights = counted * torch.where(content, 1.0, recipe.fill_weight)
    return batch.ids.masked_fill(masked_slots, mask_id), targets, weights


def _run_layer(layer: Layer, x: Tensor, cos: Tensor, sin: Tensor, mask: BlockMask) -> Tensor:
    q, k, v = (t.transpose(1, 2) for t in layer.qkv(x, cos, sin))
    attended = flex_attention(q, k, v, block_mask=mask)
    assert isinstance(attended, Tensor)
    return layer.finish(x, attended.transpose(1, 2).flatten(-2))


def _head_loss(model: Transformer, x: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    losses = F.cross_entropy(model.logits(x).float().flatten(0, -2), targets.flatten(), reduction="none")
    return (losses * weights.flatten()).sum() / weights.sum()


class Trainer:
    """Trains the model, which it compiles layer by layer at the feed's fixed shapes."""

    def __init__(self, model: Transformer, recipe: Recipe, device: str) -> None:
        self.model, self.recipe, self.device = model.to(device), recipe, device
        matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and name.startswith("layers")]
        others = [p for name, p in model.named_parameters() if p.ndim < 2 or not name.startswith("layers")]
        self.muon = Muon(matrices)
        self.adam = torch.optim.AdamW(others, betas=(0.9, 0.95), weight_decay=0.01, fused=device == "cuda")
        self.num_steps = 0
        self._run_layer = torch.compile(_run_layer, dynamic=False)
        self._head_loss = torch.compile(_head_loss, dynamic=False)
        self._corrupt = torch.compile(corrupt, dynamic=False)
        self._masks: dict[tuple[int, ...], tuple[TiledMask, TiledMask]] = {}

    def step(self, batch: PackedBatch, depth: int, rate: float) -> Tensor:
        """Take one step with the prefix isolated in the first `depth` layers; `rate` scales both learning rates."""
        batch = batch.to(self.device)
        positions, owners, canvas = layout(batch)
        plain, isolated = self._tiled_masks(owners, batch.prefix_slots)
        ids, targets, weights = self._corrupt(batch, canvas, self.recipe, self.model.config.mask_token_id)
        cos, sin = self.model.rope(positions)
        with torch.autocast(self.device, torch.bfloat16):
            x = self.model.embed(ids).bfloat16()
            for index, layer in enumerate(self.model.stack):
                x = self._run_layer(layer, x, cos, sin, (isolated if index < depth else plain).blocks)
            x = x.gather(1, canvas.flatten(1).unsqueeze(-1).expand(-1, -1, x.shape[-1]))
            loss: Tensor = self._head_loss(self.model, x, targets, weights)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0, foreach=True)
        self.num_steps += 1
        rate *= min(1.0, self.num_steps / self.recipe.warmup_steps)
        self.muon.step(self.recipe.muon_rate * rate)
        for group in self.adam.param_groups:
            group["lr"] = self.recipe.adam_rate * rate
        self.adam.step()
        self.model.zero_grad(set_to_none=True)
        return loss.detach()

    def _tiled_masks(self, owners: Tensor, prefix_slots: int) -> tuple[TiledMask, TiledMask]:
        key = (*owners.shape, prefix_slots)
        if key not in self._masks:
            plain, isolated = (TiledMask(owners, prefix_slots, isolated=flag) for flag in (False, True))
            self._masks[key] = (plain, isolated)
        for mask in self._masks[key]:
            mask.set_owners(owners)
        return self._masks[key]

    def snapshot(self) -> dict[str, Any]:
        """Return a copy of the weights and the optimizers' state."""
        weights = {name: value.clone() for name, value in self.model.state_dict().items()}
        adam = {p: {k: v.clone() for k, v in s.items()} for p, s in self.adam.state.items()}
        return {"weights": weights, "muon": self.muon.state(), "adam": adam}

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Restore weights and optimizers from a copy that `snapshot` returned."""
        self.model.load_state_dict(snapshot["weights"])
        self.muon.restore(snapshot["muon"])
        for parameter, state in snapshot["adam"].items():
            for key, value in state.items():
                self.adam.state[parameter][key].copy_(value)


class Run:
    """Runs the phases of one training, logs its progress and writes its checkpoints."""

    def __init__(self, trainer: Trainer, feed: Feed, tokenizer: Tokenizer, out: Path) -> None:
        self.trainer, self.feed, self.tokenizer, self.out = trainer, feed, tokenizer, out
        self._rng = random.Random(trainer.recipe.seed)
        self._probe: list[Sample] = list(evaluation_samples(tokenizer, 256, seed=1))
        self._tokens = 0
        self._start = time.monotonic()

    def train(self, phase: Phase, seconds: float) -> None:
        """Train for `seconds`, then write the phase's checkpoint."""
        start = reported = time.monotonic()
        self.feed.single_fraction.value = phase.single_fraction
        losses: list[Tensor] = []
        while (done := (time.monotonic() - start) / seconds) < 1:
            grown = min(1.0, done / self.trainer.recipe.growth) ** 2 if phase.grows else 1.0
            self.feed.max_people.value = MIN_PEOPLE + grown * (MAX_PEOPLE - MIN_PEOPLE)
            rate = min(1.0, (1 - done) / (1 - phase.cool_from)) if phase.cool_from < 1 else 1.0
            depth = self._rng.randint(0, self.trainer.model.config.num_layers // 2) if phase.isolated else 0
            batch = self.feed.next()
            losses.append(self.trainer.step(batch, depth, rate))
            self._tokens += batch.ids.numel()
            if time.monotonic() - reported > 40:
                self._report(phase, losses)
                losses, reported = [], time.monotonic()
        self._report(phase, losses)
        self._save(phase.checkpoint or "trunk")

    def _report(self, phase: Phase, losses: list[Tensor]) -> None:
        depths = (0, self.trainer.model.config.num_layers // 2) if phase.isolated else (0,)
        scores = [self.score(Reuse(depth=depth)) for depth in depths]
        line = {
            "phase": phase.name, "seconds": round(time.monotonic() - self._start), "step": self.trainer.num_steps,
            "tokens_millions": round(self._tokens / 1e6), "loss": round(torch.stack(losses).mean().item(), 4),
            "people": round(self.feed.max_people.value), "ready": self.feed.num_ready,
            "exact_match": {str(depth): score for depth, score in zip(depths, scores, strict=True)},
        }  # fmt: skip
        log.info(json.dumps(line))
        with (self.out / "train.jsonl").open("a") as lines:
            lines.write(json.dumps(line) + "\n")
        self._save("latest")

    def score(self, reuse: Reuse) -> float:
        """Return the exact match on a small held-out set."""
        config = self.trainer.model.config
        with torch.autocast(self.trainer.device, torch.bfloat16):
            matches = exact_matches(
                self.trainer.model, self._probe, config.mask_token_id, config.eos_token_id, reuse, batch_size=256
            )
        return sum(matches) / len(matches)

    def _save(self, name: str) -> None:
        save_checkpoint(self.trainer.model, self.tokenizer, self.out / name)


def main() -> None:
    """Train from random weights, or from a checkpoint with `--init`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="directory for checkpoints and the log")
    parser.add_argument("--minutes", type=float, default=Recipe.minutes, help="duration of all phases, in minutes")
    parser.add_argument("--init", type=Path, help="checkpoint directory to continue from")
    parser.add_argument("--phases", nargs="+", default=[phase.name for phase in PHASES], help="phases to run")
    parser.add_argument("--rate", type=float, default=1.0, help="factor on both learning rates")
    parser.add_argument("--seed", type=int, default=Recipe.seed, help="seed of data, weights and masks")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.manual_seed(args.seed)
    recipe = Recipe(minutes=args.minutes, seed=args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer()
    model = load_checkpoint(args.init, "cuda", torch.float32)[0] if args.init else new_model(tokenizer)
    feed = Feed(tokenizer, recipe.num_workers, recipe.tokens, seed=args.seed * 1000)
    run = Run(Trainer(model, recipe, "cuda"), feed, tokenizer, args.out)
    phases = [phase for phase in PHASES if phase.name in args.phases]
    total = sum(phase.time_fraction for phase in phases)
    trunk: dict[str, Any] | None = None
    for phase in phases:
        if phase.name == "isolation" and trunk is not None:
            run.trainer.restore(trunk)
        run.train(phase, recipe.minutes * 60 * phase.time_fraction / total)
        if phase.name == "trunk":
            trunk = run.trainer.snapshot()
    feed.close()


if __name__ == "__main__":
    main()
