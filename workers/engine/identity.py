"""Computes the digests that two engines must share to exchange prefix entries and the findings of probes."""

from __future__ import annotations

import hashlib

import torch

from workers.bicache.copies import EntryFormat
from workers.bicache.depth import DepthTable
from workers.config import BiCacheConfig
from workers.models.loader import LoadedModel


def entry_format(
    loaded: LoadedModel, table: DepthTable, bicache: BiCacheConfig, *, device: torch.device, dtype: torch.dtype
) -> EntryFormat:
    """Return the format of an engine's entries.

    The fingerprint differs whenever the same text would give different entries; `evidence` differs whenever a probe
    might have a different outcome.
    """
    config = loaded.config
    return EntryFormat(
        fingerprint=digest(loaded.fingerprint, bicache.cut_share),
        evidence=digest(device_kind(device), table.steps, bicache.probe_positions, bicache.probe_similarity),
        dtype=str(dtype),
        num_layers=config.num_layers,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        hidden_size=config.hidden_size,
        itemsize=dtype.itemsize,
    )


def device_kind(device: torch.device) -> str:
    """Return the GPU's model, or `cpu`: devices of the same kind compute the same numbers."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def digest(*parts: object) -> str:
    """Return a hex digest of the arguments, by their `repr`."""
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()
