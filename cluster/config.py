"""Declare the configuration as frozen dataclasses. Every key has a default: an empty file serves the bundled model."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from cache_service.config import address_of
from cache_service.core.quotas import ContextQuotas
from cache_service.logs import LogsConfig
from cluster.affinity import RouterWeights
from cluster.api_keys import ApiKeysConfig
from workers.config import WorkerConfig, require

APPLICATION = "palimpsest"
"""Name of the application in Serve."""
MIN_STORE_BYTES = 75 << 20
"""The minimum that Ray itself requires."""
LAST_PORT = 65535
DERIVED_WORKER_KEYS = ("model", "cache_service")
"""Keys of `WorkerConfig` that the file sets at its top level."""


def require_port(server: str, port: int) -> None:
    require(0 <= port <= LAST_PORT, f"{server}.port must lie in 0..{LAST_PORT}, got {port}")


@dataclass(frozen=True)
class HttpConfig:
    """Configures the address at which Ray Serve's HTTP proxy listens, and how it serves browsers and streams."""

    host: str = "127.0.0.1"
    """Address that the server listens at."""
    port: int = 8000
    """Port of the HTTP API."""
    cors_origins: tuple[str, ...] = ()
    """Origins (`https://chat.example.org`) whose pages may call the API from a browser; `*` is any; none by default."""
    keepalive_s: float = 15.0
    """Seconds between two comment lines of a stream, which show clients and proxies that it is alive while there is no
    text; a stream whose request no worker has accepted begins after as many."""

    def __post_init__(self) -> None:
        require_port("http", self.port)
        for origin in self.cors_origins:
            is_origin = origin == "*" or ("://" in origin and not origin.endswith("/"))
            require(is_origin, f"http.cors_origins must be * or SCHEME://HOST[:PORT] each, got {origin!r}")
        keepalive_s = self.keepalive_s
        require(0 < keepalive_s < math.inf, f"http.keepalive_s must be positive and finite, got {keepalive_s}")


@dataclass(frozen=True)
class GrpcConfig:
    """Configures the address at which the gRPC server listens."""

    host: str = "127.0.0.1"
    """Address that the server listens at."""
    port: int = 9000
    """Port of the gRPC API."""

    def __post_init__(self) -> None:
        require_port("grpc", self.port)


@dataclass(frozen=True)
class CacheServiceConfig:
    """Configures the addresses of the cache service, and whether `palimpsest serve` starts it."""

    host: str = "127.0.0.1"
    """Host of the first instance."""
    port: int = 7070
    """Port of the first instance."""
    spawn: bool = True
    """Let `palimpsest serve` start the first instance on this machine."""
    others: tuple[str, ...] = ()
    """HOST:PORT of further instances over the same store, which take over while this one doesn't answer."""
    contexts: ContextQuotas = field(default_factory=ContextQuotas)
    """Quotas of shared contexts for the instance that is started here; other instances have a file of their own."""

    def __post_init__(self) -> None:
        require_port("cache_service", self.port)
        for other in self.others:
            host, _, port = other.rpartition(":")
            is_address = bool(host) and port.isdecimal() and "," not in host
            require(is_address, f"cache_service.others must be HOST:PORT each, got {other!r}")
            require_port("cache_service.others", int(port))

    @property
    def target(self) -> str:
        """Return the addresses as `cache_service.client.client.CacheClient` takes them."""
        return ",".join((address_of(self.host, self.port), *self.others))

    @property
    def hosts(self) -> frozenset[str]:
        return frozenset((self.host, *(other.rpartition(":")[0].strip("[]") for other in self.others)))


@dataclass(frozen=True)
class LimitsConfig:
    """Configures the limits on clients' requests."""

    request_timeout_s: float = 120.0
    """Seconds that an answer may take; after that its work is stopped."""
    shutdown_grace_s: float = 30.0
    """Seconds that running requests get to end when the server or a replica is stopped; new ones are refused."""
    max_queued: int = 1024
    """Maximum number of requests that wait at the ingress for a replica; the next one is refused as overload."""
    max_ongoing: int = 512
    """Maximum number of requests that one replica has at a time, running or waiting in its engine."""
    max_body_bytes: int = 1 << 20
    """Length of an HTTP body or a gRPC message; a context of 8,192 tokens is rarely longer than 40,000 characters."""
    default_max_tokens: int | None = None
    """Canvas length in tokens of a request that names none; None: the model's generation_config.json's, else 128."""

    def __post_init__(self) -> None:
        timeout = self.request_timeout_s
        require(0 < timeout < math.inf, f"limits.request_timeout_s must be positive and finite, got {timeout}")
        grace = self.shutdown_grace_s
        require(0 <= grace < math.inf, f"limits.shutdown_grace_s must not be negative, and finite, got {grace}")
        for name in ("max_queued", "max_ongoing", "max_body_bytes", "default_max_tokens"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"limits.{name} must be at least 1, got {value}")


@dataclass(frozen=True)
class ResourcesConfig:
    """Configures the CPUs and the memory that Ray reserves."""

    worker_cpus: float = 1.0
    """CPUs of each worker replica; a fraction lets several replicas share one."""
    ingress_cpus: float = 0.1
    """CPUs of each ingress replica."""
    object_store_bytes: int | Literal["auto"] = "auto"
    """Shared memory of Ray's object store under `palimpsest serve`; auto: room for the copies of prefix entries that
    are in progress at a time, within the machine's memory."""

    def __post_init__(self) -> None:
        for name in ("worker_cpus", "ingress_cpus"):
            value = getattr(self, name)
            require(0 <= value < math.inf, f"resources.{name} must be finite and not negative, got {value}")
        size = self.object_store_bytes
        if size != "auto" and size < MIN_STORE_BYTES:
            raise ValueError(
                f"resources.object_store_bytes must be at least {MIN_STORE_BYTES} (75 MiB), or auto; got {size}"
            )


@dataclass(frozen=True)
class ClusterConfig:
    """Configures the whole system. `worker.model` and `worker.cache_service` follow from the top level."""

    worker: WorkerConfig
    model: str = "factbook"
    """Name of a bundled model, or a directory in Hugging Face's layout."""
    served_name: str | None = None
    """Name that clients use; by default the model's own."""
    replicas: int | Literal["auto"] = "auto"
    """Number of worker replicas; auto: one for each GPU, or 2 without GPUs."""
    http: HttpConfig = field(default_factory=HttpConfig)
    grpc: GrpcConfig = field(default_factory=GrpcConfig)
    cache_service: CacheServiceConfig = field(default_factory=CacheServiceConfig)
    api_keys: ApiKeysConfig = field(default_factory=ApiKeysConfig)
    router: RouterWeights = field(default_factory=RouterWeights)
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    resources: ResourcesConfig = field(default_factory=ResourcesConfig)
    logs: LogsConfig = field(default_factory=LogsConfig)

    def __post_init__(self) -> None:
        if self.replicas != "auto" and self.replicas < 1:
            raise ValueError(f"replicas must be at least 1, or auto; got {self.replicas}")

    def is_on_gpus(self, num_gpus: int) -> bool:
        """Return whether workers run on GPUs in a cluster that has `num_gpus` of them."""
        return self.worker.device == "cuda" or (self.worker.device == "auto" and num_gpus > 0)

    def num_replicas(self, num_gpus: int) -> int:
        """Return the number of worker replicas in a cluster with `num_gpus` GPUs."""
        if self.replicas != "auto":
            return self.replicas
        return max(1, num_gpus) if self.is_on_gpus(num_gpus) else 2

    @property
    def name(self) -> str:
        return self.served_name or self.worker.model.name
