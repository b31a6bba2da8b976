"""Measures how similar an entry's K/V are to the true ones, which depend on what follows the prefix.

What a probe finds is a function of the prefix and the ratio bucket. It runs by itself, always in the same shape: it
sees neither the request that it runs for, nor the batch, nor the depth to which the entry is kept.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from workers.bicache.depth import nominal_suffix_length
from workers.bicache.entry import PrefixEntry
from workers.kv.storage import PageStorage
from workers.models.base import DiffusionLM
from workers.models.layers import full_attention


def similarities(
    entry: PrefixEntry, bucket: int, model: DiffusionLM, storage: PageStorage, *, most: int, num_positions: int
) -> list[float]:
    """Return, by layer, the cosine of the prefix's K/V alone and with a suffix, at positions spread over the prefix.

    Layers 0..most-1 are compared, and the next one, whose K/V come from the states that enter it. The suffix is
    all masks, not the request's own, and as long as the bucket's ratios allow.
    """
    config, prefix, device = model.config, entry.layout.num_tokens, storage.device
    num_suffix = nominal_suffix_length(prefix, bucket, config.context_length)
    positions = torch.linspace(0, prefix - 1, min(num_positions, prefix), device=device).round().long()
    tokens = torch.tensor([*entry.token_ids, *[config.mask_token_id] * num_suffix], device=device)
    everywhere = range(len(tokens))
    rope = model.rope(torch.arange(len(tokens), device=device))
    mask = config.visible(everywhere, everywhere, device)
    x = model.embed(tokens)
    found: list[Tensor] = []
    for index in range(min(most + 1, config.num_layers)):
        q, k, v = model.stack[index].qkv(x, *rope)
        k_alone, v_alone = kv_alone(entry, index, model, storage)
        found.append((cosine(k_alone[positions], k[positions]) + cosine(v_alone[positions], v[positions])) / 2)
        x = model.stack[index].finish(x, full_attention(index, q, k, v, mask).flatten(1))
    return torch.stack(found).tolist()  # one copy from the device


def kv_alone(entry: PrefixEntry, layer: int, model: DiffusionLM, storage: PageStorage) -> tuple[Tensor, Tensor]:
    """Return K and V of the prefix alone [prefix, kv_heads, head_dim].

    For the first layer beyond the entry's, they are computed from all boundary states at once, as in a deeper entry.
    """
    if layer < entry.layout.kv_depth:
        return storage.read(entry.table.slots[layer])
    num_tokens, device = entry.layout.num_tokens, storage.device
    states = storage.read_states(entry.table.state_pages[layer], num_tokens, model.config.hidden_size)
    _, k, v = model.stack[layer].qkv(states, *model.rope(torch.arange(num_tokens, device=device)))
    return k, v


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Return the mean over positions of the cosine similarity over all heads of a position."""
    return F.cosine_similarity(a.flatten(1).float(), b.flatten(1).float()).mean()
