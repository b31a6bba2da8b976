"""Describe the copy of a prefix entry that travels between replicas, and check it on arrival. Pure."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from cache_service.core.types import PrefixKey
from workers.api import CopyRequest
from workers.bicache.checksum import checksum
from workers.bicache.depth import Finding
from workers.errors import WorkerError

COPY_VERSION = 3
"""The version of the order of bytes in a copy's body, and of the meaning of its evidence."""


class TransferError(WorkerError):
    """An entry could not be fetched; it is built instead."""


class CopyRefusedError(TransferError):
    """A copy arrived that differs from what was requested or from what was sent. `reason` labels it in metrics."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class EntryFormat:
    """Describes the format of a copy, which must be equal on both replicas."""

    fingerprint: str
    """Digest over weights, dtype, tokenizer and the rule by which prompts are cut."""
    evidence: str
    """Digest over all else that a probe's outcome depends on: device kind, depth table, settings of probes."""
    dtype: str
    num_layers: int
    num_kv_heads: int
    head_dim: int
    hidden_size: int
    itemsize: int
    version: int = COPY_VERSION

    def body_bytes(self, num_tokens: int, kv_depth: int, num_states: int) -> int:
        """Return the size of a copy's body."""
        per_layer = 2 * self.num_kv_heads * self.head_dim
        return num_tokens * (kv_depth * per_layer + num_states * self.hidden_size) * self.itemsize


@dataclass(frozen=True)
class EntryCopy:
    """Carries a whole entry by value.

    The body is, in order, K and V [num_tokens, kv_heads, head_dim] of each layer below the deepest depth, then the
    states [num_tokens, hidden] that enter each layer of `state_depths`.
    """

    format: EntryFormat
    key: PrefixKey
    token_ids: tuple[int, ...]
    kv_depth: int
    state_depths: tuple[int, ...]
    findings: tuple[tuple[int, Finding], ...]
    """(ratio bucket, finding) of the holder's probes; the receiver's own would find the same."""
    body: Tensor
    """uint8 [bytes], on any device."""
    seal: bytes = b""
    """The digest of all of the above; see `sealed`."""
    transport: str = "none"
    """The transport that brought it here."""

    @property
    def depths(self) -> frozenset[int]:
        return frozenset({self.kv_depth, *self.state_depths})

    @property
    def num_bytes(self) -> int:
        return self.body.nbytes

    def digest(self) -> bytes:
        """Return a digest of the description and of the bytes; it is computed on the device that holds them."""
        head = (vars(self.format), self.key.hex(), self.token_ids, self.kv_depth, self.state_depths, self.findings)
        text = json.dumps((head, checksum(self.body)), sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=20).digest()

    def sealed(self) -> EntryCopy:
        """Return this copy with `seal` set to its digest."""
        return replace(self, seal=self.digest())


class Transport(Protocol):
    """Carries copies from one replica to another."""

    async def fetch(self, request: CopyRequest) -> EntryCopy | None:
        """Return the holder's copy; None if the holder has no such entry any more. Raises TransferError."""
        ...


class UnreachableTransport:
    """Refuses every fetch: the transport of a replica that can't reach the others."""

    async def fetch(self, request: CopyRequest) -> EntryCopy | None:
        raise TransferError(f"this replica can't reach {request.holder}")


def check_copy(copy: EntryCopy, request: CopyRequest, mine: EntryFormat, token_ids: tuple[int, ...] | None) -> None:
    """Raise CopyRefusedError unless the copy is what `request` asked for, of `token_ids` if they are known."""
    if copy.format != mine:
        raise CopyRefusedError("format", f"the copy has the format {copy.format}, this replica has {mine}")
    if copy.key != request.key:
        raise CopyRefusedError(
            "key", f"the copy has key {copy.key.hex()}, not {request.key.hex()}, which was asked for"
        )
    if token_ids is not None and copy.token_ids != token_ids:
        raise CopyRefusedError("tokens", f"the copy under key {copy.key.hex()} has other tokens than the prompt")
    if request.depths is not None and copy.depths != set(request.depths):
        raise CopyRefusedError("layout", f"the copy serves depths {sorted(copy.depths)}, not {request.depths}")
    size = mine.body_bytes(len(copy.token_ids), copy.kv_depth, len(copy.state_depths))
    if copy.body.dtype != torch.uint8 or copy.body.shape != (size,):
        raise CopyRefusedError("layout", f"the copy has {copy.num_bytes} bytes, its layout takes {size}")
    if copy.seal != copy.digest():
        raise CopyRefusedError("checksum", f"the copy of {copy.key.hex()} was damaged on the way")
