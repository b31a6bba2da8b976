"""Trains both checkpoints in one run: a plain trunk, then `factbook-plain` and `factbook` from it.

    python -m workers.models.factbook.train OUT [--minutes 26]

Phases (a share of the time each): `trunk` at a constant rate while sheets grow; `plain` cools the trunk down on single
questions, so that prefix rows see just one; `isolation` goes on from the trunk with prefix isolation and cools down.
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
from workers.models.factbook.branches import BRANCH, Packed, TiledMask, layout
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
    """A stretch of training: its share of the time, its isolation and its learning rate."""

    name: str
    share: float
    isolated: bool
    single_share: float
    grows: bool = False
    cool_from: float = 1.0
    """Part of the phase after which the rate falls linearly to zero."""
    checkpoint: str | None = None


PHASES = (
    Phase("trunk", 0.54, isolated=False, single_share=0.12, grows=True),
    Phase("plain", 0.16, isolated=False, single_share=0.5, cool_from=0.0, checkpoint="factbook-plain"),
    Phase("isolation", 0.30, isolated=True, single_share=0.15, cool_from=0.4, checkpoint="factbook"),
)


@dataclass(frozen=True)
class Recipe:
    """What a run may change; seconds for times."""

    minutes: float = 26.0
    tokens: int = 106_496
    muon_rate: float = 4e-3
    adam_rate: float = 2e-3
    warmup_steps: int = 200
    growth: float = 0.4
    """Part of the growing phase over which sheets grow to MAX_PEOPLE, slowly at first."""
    full_mask_share: float = 0.3
    suffix_mask_share: float = 0.15
    fill_weight: float = 0.1
    """Loss weight of EOS after the first."""
    num_workers: int = 14
    seed: int = 1


def corrupt(batch: Packed, canvas: Tensor, recipe: Recipe, mask_id: int) -> tuple[Tensor, Tensor, Tensor]:
    """Masked ids [B, S], targets and loss weights [B, branches, CANVAS].

    A branch is masked wholly, or from a random position on, or at random with a ratio uniform in (0, 1).
    """
    shape, device = (*canvas.shape[:2], BRANCH), canvas.device
    place = torch.arange(BRANCH, device=device) - batch.suffix_len.unsqueeze(-1)
    draw, ratio = torch.rand(2, *shape[:2], 1, device=device)
    masked = torch.rand(shape, device=device) < ratio
    from_place = draw < recipe.full_mask_share + recipe.suffix_mask_share
    masked = torch.where(from_place, place >= ratio * CANVAS, masked) | (draw < recipe.full_mask_share)
    masked = masked & (place >= 0) & (place < batch.canvas_len.unsqueeze(-1))
    everywhere = F.pad(masked.flatten(1), (batch.prefix_slots, 0))
    targets = batch.ids.gather(1, canvas.flatten(1)).view(canvas.shape)
    counted = everywhere.gather(1, canvas.flatten(1)).view(canvas.shape)
    content = torch.arange(CANVAS, device=device) <= batch.answer_len.unsqueeze(-1)
    weights = counted * torch.where(content, 1.0, recipe.fill_weight)
    return batch.ids.masked_fill(everywhere, mask_id), targets, weights


def _run_layer(layer: Layer, x: Tensor, cos: Tensor, sin: Tensor, mask: BlockMask) -> Tensor:
    q, k, v = (t.transpose(1, 2) for t in layer.qkv(x, cos, sin))
    attended = flex_attention(q, k, v, block_mask=mask)
    assert isinstance(attended, Tensor)
    return layer.finish(x, attended.transpose(1, 2).flatten(-2))


def _head_loss(model: Transformer, x: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    losses = F.cross_entropy(model.logits(x).float().flatten(0, -2), targets.flatten(), reduction="none")
    return (losses * weights.flatten()).sum() / weights.sum()


class Trainer:
    """The model with its optimizers, compiled layer by layer at the feed's fixed shapes."""

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

    def step(self, batch: Packed, depth: int, rate: float) -> Tensor:
        """One optimizer step with the prefix isolated in the first `depth` layers; `rate` scales both rates."""
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
            mask.show(owners)
        return self._masks[key]

    def snapshot(self) -> dict[str, Any]:
        """A copy of weights and optimizer state."""
        weights = {name: value.clone() for name, value in self.model.state_dict().items()}
        adam = {p: {k: v.clone() for k, v in s.items()} for p, s in self.adam.state.items()}
        return {"weights": weights, "muon": self.muon.state(), "adam": adam}

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Back to a copy that `snapshot` gave."""
        self.model.load_state_dict(snapshot["weights"])
        self.muon.restore(snapshot["muon"])
        for parameter, state in snapshot["adam"].items():
            for key, value in state.items():
                self.adam.state[parameter][key].copy_(value)


class Run:
    """One training run: phases, logging, checkpoints."""

    def __init__(self, trainer: Trainer, feed: Feed, tokenizer: Tokenizer, out: Path) -> None:
        self.trainer, self.feed, self.tokenizer, self.out = trainer, feed, tokenizer, out
        self._rng = random.Random(trainer.recipe.seed)
        self._probe: list[Sample] = list(evaluation_samples(tokenizer, 256, seed=1))
        self._tokens = 0
        self._start = time.monotonic()

    def phase(self, phase: Phase, seconds: float) -> None:
        """Trains for `seconds`, then writes the phase's checkpoint."""
        start = reported = time.monotonic()
        self.feed.single_share.value = phase.single_share
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
        """Exact match on a small held-out set."""
        config = self.trainer.model.config
        with torch.autocast(self.trainer.device, torch.bfloat16):
            matches = exact_matches(
                self.trainer.model, self._probe, config.mask_token_id, config.eos_token_id, reuse, batch_size=256
            )
        return sum(matches) / len(matches)

    def _save(self, name: str) -> None:
        save_checkpoint(self.trainer.model, self.tokenizer, self.out / name)


def main() -> None:
    """Trains from fresh weights, or goes on from a checkpoint with `--init`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=Recipe.minutes)
    parser.add_argument("--init", type=Path, help="checkpoint directory to start from")
    parser.add_argument("--phases", nargs="+", default=[phase.name for phase in PHASES])
    parser.add_argument("--rate", type=float, default=1.0, help="factor on both learning rates")
    parser.add_argument("--seed", type=int, default=Recipe.seed)
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
    total = sum(phase.share for phase in phases)
    trunk: dict[str, Any] | None = None
    for phase in phases:
        if phase.name == "isolation" and trunk is not None:
            run.trainer.restore(trunk)
        run.phase(phase, recipe.minutes * 60 * phase.share / total)
        if phase.name == "trunk":
            trunk = run.trainer.snapshot()
    feed.close()


if __name__ == "__main__":
    main()
