"""The trainer takes optimizer steps on packed batches, with the prefix isolated in the first layers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from workers.models.base import Layer
from workers.models.factbook.branches import PackedBatch, TiledMask, dense_attention, layout
from workers.models.factbook.muon import Muon
from workers.models.factbook.samples import CANVAS
from workers.models.layers import Transformer

torch._dynamo.config.recompile_limit = 32  # every shape of batch has two masks
RunLayer = Callable[[Layer, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Recipe:
    """A recipe holds the settings of a training."""

    tokens: int = 106_496
    muon_rate: float = 4e-3
    adam_rate: float = 2e-3
    warmup_steps: int = 200
    full_mask_fraction: float = 0.3
    suffix_mask_fraction: float = 0.15
    block_mask_fraction: float = 0.3
    """Fraction of canvases, among those masked at random, in which all behind the first block is masked."""
    fill_weight: float = 0.1
    """Loss weight of each EOS after the first, in canvases of up to `max_fill` / `fill_weight` tokens."""
    max_fill: float = 4.0
    """Largest sum of these weights in one canvas."""
    num_workers: int = 14
    seed: int = 1


def corrupt(batch: PackedBatch, canvas: Tensor, recipe: Recipe, mask_id: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return masked ids [B, S], targets and loss weights [B, branches, branch slots].

    A branch is masked wholly, or from a random position on, or at random with a ratio uniform in (0, 1), as its first
    block may be while all blocks behind it are masked.
    """
    num_slots, device = batch.branch_slots, canvas.device
    shape = (*canvas.shape[:2], num_slots)
    position = torch.arange(num_slots, device=device) - batch.suffix_len.unsqueeze(-1)
    draw, ratio = torch.rand(2, *shape[:2], 1, device=device)
    masked = torch.rand(shape, device=device) < ratio
    masked = masked | ((position >= CANVAS) & (draw > 1 - recipe.block_mask_fraction))
    from_position = draw < recipe.full_mask_fraction + recipe.suffix_mask_fraction
    masked = torch.where(from_position, position >= ratio * CANVAS, masked) | (draw < recipe.full_mask_fraction)
    masked = masked & (position >= 0) & (position < batch.canvas_len.unsqueeze(-1))
    masked_slots = F.pad(masked.flatten(1), (batch.prefix_slots, 0))
    targets = batch.ids.gather(1, canvas.flatten(1)).view(canvas.shape)
    offset = torch.arange(num_slots, device=device)
    counted = masked_slots.gather(1, canvas.flatten(1)).view(canvas.shape) & (offset < batch.canvas_len.unsqueeze(-1))
    fill = (recipe.max_fill / batch.canvas_len.clamp(min=1).unsqueeze(-1)).clamp(max=recipe.fill_weight)
    weights = counted * torch.where(offset <= batch.answer_len.unsqueeze(-1), 1.0, fill)
    return batch.ids.masked_fill(masked_slots, mask_id), targets, weights


def _run_layer(layer: Layer, x: Tensor, cos: Tensor, sin: Tensor, mask: BlockMask) -> Tensor:
    q, k, v = (t.transpose(1, 2) for t in layer.qkv(x, cos, sin))
    attended = flex_attention(q, k, v, block_mask=mask)
    assert isinstance(attended, Tensor)
    return layer.finish(x, attended.transpose(1, 2).flatten(-2))


def _head_loss(model: Transformer, x: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    losses = F.cross_entropy(model.logits(x).float().flatten(0, -2), targets.flatten(), reduction="none")
    return (losses * weights.flatten()).sum() / weights.sum().clamp(min=1.0)


class Trainer:
    """Trains the model; on a GPU it compiles the layers at the feed's fixed shapes, on a CPU it does not."""

    def __init__(self, model: Transformer, recipe: Recipe, device: str) -> None:
        self.model, self.recipe, self.device = model.to(device), recipe, device
        matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and name.startswith("layers")]
        others = [p for name, p in model.named_parameters() if p.ndim < 2 or not name.startswith("layers")]
        self.muon = Muon(matrices)
        self.adam = torch.optim.AdamW(others, betas=(0.9, 0.95), weight_decay=0.01, fused=device == "cuda")
        self.num_steps = 0
        self._is_compiled = device == "cuda"
        self._run_layer = self._compile(_run_layer)
        self._head_loss = self._compile(_head_loss)
        self._corrupt = self._compile(corrupt)
        self._masks: dict[tuple[int, ...], tuple[TiledMask, TiledMask]] = {}

    def _compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return torch.compile(function, dynamic=False) if self._is_compiled else function

    def step(self, batch: PackedBatch, depth: int, rate: float) -> Tensor:
        """Take one step with the prefix isolated in the first `depth` layers; `rate` scales both learning rates."""
        batch = batch.to(self.device)
        positions, owners, canvas = layout(batch, batch.branch_slots)
        ids, targets, weights = self._corrupt(batch, canvas, self.recipe, self.model.config.mask_token_id)
        cos, sin = self.model.rope(positions)
        with torch.autocast(self.device, torch.bfloat16, enabled=self._is_compiled):
            x = self.model.embed(ids)
            x = x.bfloat16() if self._is_compiled else x
            run_plain, run_isolated = self._layer_runners(batch, owners)
            for index, layer in enumerate(self.model.stack):
                x = (run_isolated if index < depth else run_plain)(layer, x, cos, sin)
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

    def _layer_runners(self, batch: PackedBatch, owners: Tensor) -> tuple[RunLayer, RunLayer]:
        """Return how to run a layer with the prefix in sight of all branches, and with the prefix isolated."""
        if self._is_compiled:
            plain, isolated = (mask.blocks for mask in self._tiled_masks(batch, owners))
            return lambda *args: self._run_layer(*args, plain), lambda *args: self._run_layer(*args, isolated)

        def runner(is_isolated: bool) -> RunLayer:
            attend = dense_attention(owners, batch.prefix_slots, isolated=is_isolated)
            return lambda layer, x, cos, sin: layer.finish(x, attend(*layer.qkv(x, cos, sin)).flatten(-2))

        return runner(False), runner(True)

    def _tiled_masks(self, batch: PackedBatch, owners: Tensor) -> tuple[TiledMask, TiledMask]:
        key = (*owners.shape, batch.prefix_slots)
        if key not in self._masks:
            plain, isolated = (
                TiledMask(owners, batch.prefix_slots, isolated=flag, branch_slots=batch.branch_slots)
                for flag in (False, True)
            )
            self._masks[key] = (plain, isolated)
        for mask in self._masks[key]:
            mask.set_owners(owners)
        return self._masks[key]

    def state(self) -> dict[str, Any]:
        """Return a copy of the weights and the optimizers' state, which can be saved."""
        weights = {name: value.clone() for name, value in self.model.state_dict().items()}
        adam = [{k: v.clone() for k, v in self.adam.state[p].items()} for p in self._adam_parameters()]
        return {"weights": weights, "muon": self.muon.state(), "adam": adam, "num_steps": self.num_steps}

    def restore(self, state: dict[str, Any]) -> None:
        """Restore weights and optimizers from a copy that `state` returned; the count of steps never falls."""
        self.model.load_state_dict(state["weights"])
        self.muon.restore(state["muon"])
        for parameter, saved in zip(self._adam_parameters(), state["adam"], strict=True):
            self.adam.state[parameter] = {key: value.to(self._home(key, parameter)) for key, value in saved.items()}
        self.num_steps = max(self.num_steps, state["num_steps"])

    def _adam_parameters(self) -> list[Tensor]:
        return [parameter for group in self.adam.param_groups for parameter in group["params"]]

    def _home(self, key: str, parameter: Tensor) -> torch.device:
        return parameter.device if key != "step" or self._is_compiled else torch.device("cpu")
