"""How like their true ones an entry's K/V are: the true ones depend on what follows the prefix."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from workers.bicache.entry import PrefixEntry
from workers.kv.storage import PageStorage
from workers.models.base import DiffusionLM
from workers.models.layers import full_attention


def similarities(
    entry: PrefixEntry, num_suffix: int, model: DiffusionLM, storage: PageStorage, num_positions: int
) -> list[float]:
    """Cosine of the entry's K/V and those before `num_suffix` masks, by layer, at positions spread over the prefix.

    The suffix is all masks, not the request's own, so that what is found holds for the prefix, whoever asks first.
    Layers 0..kv_depth-1 are compared, and the one behind them, whose K/V come from the entry's boundary states.
    """
    prefix, device = entry.layout.num_tokens, storage.device
    positions = torch.linspace(0, prefix - 1, min(num_positions, prefix), device=device).round().long()
    tokens = torch.tensor([*entry.token_ids, *[model.config.mask_token_id] * num_suffix], device=device)
    rope = model.rope(torch.arange(len(tokens), device=device))
    x = model.embed(tokens)
    found: list[Tensor] = []
    for index in range(min(entry.layout.kv_depth + 1, model.config.num_layers)):
        q, k, v = model.stack[index].qkv(x, *rope)
        kept_k, kept_v = entry_kv(entry, index, positions, model, storage)
        found.append((cosine(kept_k, k[positions]) + cosine(kept_v, v[positions])) / 2)
        x = model.stack[index].finish(x, full_attention(index, q, k, v).flatten(1))
    return torch.stack(found).tolist()  # one copy from the device


def entry_kv(
    entry: PrefixEntry, layer: int, positions: Tensor, model: DiffusionLM, storage: PageStorage
) -> tuple[Tensor, Tensor]:
    if layer < entry.layout.kv_depth:
        return storage.read(entry.table.slots[layer][positions])
    states = storage.read_states(entry.table.state_pages[layer], entry.layout.num_tokens, model.config.hidden_size)
    _, k, v = model.stack[layer].qkv(states[positions], *model.rope(positions))
    return k, v


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Mean over positions, all heads of a position taken together."""
    return F.cosine_similarity(a.flatten(1).float(), b.flatten(1).float()).mean()
