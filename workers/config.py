"""Declares a worker's configuration: frozen dataclasses that check their values."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

Device = Literal["auto", "cpu", "cuda"]
DType = Literal["auto", "float32", "bfloat16", "float16"]

MIB = 1 << 20
POLICY_NAMES = ("none", "prefix-naive", "bicache", "dual", "bicache-dual", "lean")


def require(condition: bool, message: str) -> None:
    """Raise ValueError with `message` unless `condition` holds."""
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True)
class EngineConfig:
    """Configures how many requests run together, and the decoding defaults of requests."""

    max_batch: int = 8
    """Maximum number of requests that are denoised together."""
    max_waiting: int = 256
    """Maximum number of requests that wait for admission; the next one is refused as overload."""
    max_heavy_rows: int = 2048
    """Maximum number of rows of refreshes, full passes and builds in one step while no cheap pass waits for it."""
    policy: str = "lean"
    """Cache policy."""
    block_length: int = 32
    """Canvas tokens in a block."""
    tokens_per_step: int = 2
    """Canvas tokens that a step commits on average, for requests that don't set the number of steps."""

    def __post_init__(self) -> None:
        for name in ("max_batch", "max_heavy_rows", "block_length", "tokens_per_step"):
            require(getattr(self, name) >= 1, f"engine.{name} must be at least 1, got {getattr(self, name)}")
        require(
            self.policy in POLICY_NAMES, f"engine.policy must be one of {', '.join(POLICY_NAMES)}, got {self.policy!r}"
        )
        require(self.max_waiting >= 0, f"engine.max_waiting must not be negative, got {self.max_waiting}")


@dataclass(frozen=True)
class KVConfig:
    """Configures the size of the page pool, which private K/V of running requests and prefix entries share."""

    pool_bytes: int | None = None
    """None: `device_share` of a GPU's free memory once the model is loaded; 1 GiB on a CPU."""
    device_share: float = 0.85
    """Share of a GPU's free memory; the rest is for the rows that a step computes, and for other programs."""
    entry_bytes: int | None = None
    """Part of the pool that shared prefix entries may fill; None is half of it. A request whose entry has no room there
    computes a private entry outside this part: with 0 every request does so."""
    page_tokens: int = 16
    """Tokens whose K and V, of one layer, a page holds."""

    def __post_init__(self) -> None:
        pool, entries = self.pool_bytes, self.entry_bytes
        require(pool is None or pool > 0, f"kv.pool_bytes must be positive, got {pool}")
        require(0 < self.device_share < 1, f"kv.device_share must lie between 0 and 1, got {self.device_share}")
        require(entries is None or entries >= 0, f"kv.entry_bytes must not be negative, got {entries}")
        require(
            pool is None or entries is None or entries <= pool,
            f"kv.entry_bytes must lie in 0..kv.pool_bytes ({pool}), got {entries}",
        )
        require(self.page_tokens >= 1, f"kv.page_tokens must be at least 1, got {self.page_tokens}")


@dataclass(frozen=True)
class BiCacheConfig:
    """Configures how deep, and for how many steps, prefix states are reused."""

    cut_share: float = 1 / 3
    """A prompt is cut at its shortest boundary that covers this share of its longest one. Part of the fingerprint."""
    deterministic: bool = True
    """Default of a request's `deterministic`: nothing but the request and the model decides the reuse depth.
    False lets drift reports of other replicas lower it."""
    refresh_interval: int = 16
    """Decoding steps between two refreshes of the prefix states; 0 acts as 1."""
    entry_depths: int = 4
    """Reuse depths, around that of its first request, for which a new entry keeps boundary states. Others are added
    when a request needs them."""
    probe_positions: int = 32
    """Prefix positions at which an entry is compared with the true states before its depth is trusted (policy `lean`);
    0 trusts the depth table alone."""
    probe_similarity: float = 0.9
    """Minimum cosine similarity of K/V at these positions, in every reused layer and in the next one."""
    anchors: float = 1.0
    """Share of the prefix rows, the most attended ones, that refreshes after a request's first recompute."""
    skip_refresh: bool = False
    """Skip a due refresh while attention to the prefix is unchanged."""
    skip_similarity: float = 0.95
    """Minimum cosine similarity to the attention at the last refresh for attention to count as unchanged."""
    max_skips: int = 3
    """Maximum number of consecutive refreshes that may be skipped."""
    follow_timeout_s: float = 0.5
    """Seconds that a request in follow mode waits, at a block start, for the newest epoch of its context, before it
    continues with the one that it has."""

    def __post_init__(self) -> None:
        require(0 < self.cut_share <= 1, f"bicache.cut_share must lie in (0, 1], got {self.cut_share}")
        require(self.entry_depths >= 1, f"bicache.entry_depths must be at least 1, got {self.entry_depths}")
        require(self.probe_positions >= 0, f"bicache.probe_positions must not be negative, got {self.probe_positions}")
        require(-1 <= self.probe_similarity <= 1, f"bicache.probe_similarity is a cosine, got {self.probe_similarity}")
        require(0 < self.anchors <= 1, f"bicache.anchors must lie in (0, 1], got {self.anchors}")
        require(-1 <= self.skip_similarity <= 1, f"bicache.skip_similarity is a cosine, got {self.skip_similarity}")
        require(self.follow_timeout_s > 0, f"bicache.follow_timeout_s must be positive, got {self.follow_timeout_s}")
        require(self.max_skips >= 0, f"bicache.max_skips must not be negative, got {self.max_skips}")
        require(
            self.refresh_interval >= 0,
            f"bicache.refresh_interval must not be negative, got {self.refresh_interval}",
        )


Transfer = Literal["auto", "always", "never"]
TensorTransport = Literal["auto", "nixl", "object_store"]
RefreshPolicy = Literal["lazy", "eager"]


@dataclass(frozen=True)
class CoherenceConfig:
    """Configures how replicas share prefix entries and the work of building them."""

    transfer: Transfer = "auto"
    """Fetch entries that other replicas hold: always, never, or (auto) if that should be quicker than a build."""
    tensor_transport: TensorTransport = "auto"
    """Transport of copies: nixl, by Ray Direct Transport from one GPU's memory to another's; object_store, through the
    hosts' memory; auto, by nixl on a GPU with neighbours, if nixl runs."""
    patience: float = 2.0
    """Longest wait for another replica's build, as a multiple of the time that a build here takes (transfer auto)."""
    max_wait_s: float = 2.0
    """The longest wait for another replica's build, whatever the patience."""
    fetch_timeout_s: float = 5.0
    """Seconds after which a fetch is given up, and the entry built."""
    build_lease_s: float = 10.0
    """Seconds without a sign of life after which another replica may take over a build that this one began."""
    refresh: RefreshPolicy = "lazy"
    """Time to rebuild the entry of a shared context with a new epoch: at the next request (lazy) or at once (eager)."""
    prewarm: int = 16
    """Number of the cluster's hottest prefixes that a new replica fetches while it begins to serve; 0 begins empty."""
    profile: int = 0
    """Version of the depth table. Depth limits that replicas found under an older one no longer count."""

    def __post_init__(self) -> None:
        require(self.patience >= 1, f"coherence.patience must be at least 1, got {self.patience}")
        for name in ("max_wait_s", "fetch_timeout_s"):
            require(getattr(self, name) > 0, f"coherence.{name} must be positive, got {getattr(self, name)}")
        require(
            0.1 <= self.build_lease_s <= 600,
            f"coherence.build_lease_s must lie within 0.1 and 600 seconds, got {self.build_lease_s}",
        )
        for name in ("prewarm", "profile"):
            require(getattr(self, name) >= 0, f"coherence.{name} must not be negative, got {getattr(self, name)}")
        allowed = {
            "transfer": get_args(Transfer),
            "tensor_transport": get_args(TensorTransport),
            "refresh": get_args(RefreshPolicy),
        }
        for name, values in allowed.items():
            value = getattr(self, name)
            require(value in values, f"coherence.{name} must be one of {', '.join(values)}, got {value!r}")


@dataclass(frozen=True)
class WorkerConfig:
    """Configures one worker: its model, its device and its cache service."""

    model: Path
    device: Device = "auto"
    """auto: CUDA if there is a GPU, else the CPU."""
    dtype: DType = "auto"
    """auto: bfloat16 on CUDA, float32 on the CPU."""
    num_threads: int | None = None
    """CPU threads of one replica's model. None: on a CPU an equal share of the machine's cores, else torch's choice."""
    cache_service: str | None = None
    """HOST:PORT of the cache service; None runs without one."""
    lease_ttl_s: float = 10.0
    """Seconds without a keep-alive after which the cache service forgets this replica."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    kv: KVConfig = field(default_factory=KVConfig)
    bicache: BiCacheConfig = field(default_factory=BiCacheConfig)
    coherence: CoherenceConfig = field(default_factory=CoherenceConfig)

    def __post_init__(self) -> None:
        require(
            self.num_threads is None or self.num_threads >= 1,
            f"worker.num_threads must be at least 1, got {self.num_threads}",
        )
        ttl_s = self.lease_ttl_s
        require(0 < ttl_s < math.inf, f"worker.lease_ttl_s must be positive and finite, got {ttl_s}")
