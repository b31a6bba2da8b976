"""Muon (Jordan et al. 2024) trains the matrices of a small transformer, in batches of one shape."""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """Return about U V^T of each matrix's singular value decomposition; [n, rows, columns], in bfloat16.

    This is the quintic Newton-Schulz iteration with the coefficients of the Muon paper.
    """
    a, b, c = _COEFFICIENTS
    x = matrices.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    out: Tensor = x.mT if tall else x
    return out


class Muon:
    """Orthogonalises momentum; an update's root mean square is 0.2 (Liu et al. 2025, sec. 2.2)."""

    def __init__(self, parameters: Iterable[nn.Parameter], momentum: float = 0.95, weight_decay: float = 0.05) -> None:
        groups: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
        for parameter in parameters:
            groups[parameter.shape].append(parameter)
        self._groups = list(groups.values())
        self._buffers = [torch.zeros(len(g), *g[0].shape, device=g[0].device) for g in self._groups]
        self._momentum, self._weight_decay = momentum, weight_decay

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Update the parameters once from their gradients."""
        for group, buffer in zip(self._groups, self._buffers, strict=True):
            gradient = torch.stack([p.grad for p in group if p.grad is not None])
            buffer.lerp_(gradient, 1 - self._momentum)
            update = orthogonalize(gradient.lerp(buffer, self._momentum))
            scale = 0.2 * max(update.shape[-2:]) ** 0.5
            values: list[Tensor] = list(group)
            torch._foreach_mul_(values, 1 - lr * self._weight_decay)
            torch._foreach_add_(values, list((update.float() * (-lr * scale)).unbind()))

    def state(self) -> list[Tensor]:
        """Return a copy of the momentum."""
        return [buffer.clone() for buffer in self._buffers]

    def restore(self, state: list[Tensor]) -> None:
        """Restore the momentum from a copy that `state` returned."""
        for buffer, saved in zip(self._buffers, state, strict=True):
            buffer.copy_(saved)
