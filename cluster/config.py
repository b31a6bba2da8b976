"""Read a YAML file as frozen dataclasses. Every key has a default, so that an empty file serves the bundled model."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import cattrs
import yaml
from cattrs.strategies import configure_union_passthrough

from cache_service.config import address_of
from cache_service.core.quotas import ContextQuotas
from cache_service.errors import InvalidRequest
from cluster.affinity import RouterWeights
from cluster.api_keys import ApiKeysConfig
from cluster.errors import ConfigError
from workers.config import WorkerConfig, require
from workers.errors import UnsupportedModelError
from workers.models.bundle import model_directory

APPLICATION = "palimpsest"
"""Name of the application in Serve."""
DEFAULT_MAX_TOKENS = 128
LEAST_STORE_BYTES = 75 << 20
"""The minimum that Ray itself requires."""
LAST_PORT = 65535
INJECTED = ("model", "cache_service")
"""Keys of `WorkerConfig` that the file sets at its top level."""


def require_port(server: str, port: int) -> None:
    require(0 <= port <= LAST_PORT, f"{server}.port must lie in 0..{LAST_PORT}, got {port}")


@dataclass(frozen=True)
class HttpConfig:
    """Says where Ray Serve's HTTP proxy listens."""

    host: str = "127.0.0.1"
    """Address that the server listens at."""
    port: int = 8000
    """Port of the HTTP API."""

    def __post_init__(self) -> None:
        require_port("http", self.port)


@dataclass(frozen=True)
class GrpcConfig:
    """Says where the gRPC server listens."""

    host: str = "127.0.0.1"
    """Address that the server listens at."""
    port: int = 9000
    """Port of the gRPC API."""

    def __post_init__(self) -> None:
        require_port("grpc", self.port)


@dataclass(frozen=True)
class CacheServiceConfig:
    """Says where the cache service is; `spawn` lets `palimpsest serve` run it as a child on this machine."""

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
    """Limits what clients may ask for."""

    request_timeout_s: float = 120.0
    """Seconds that an answer may take; after that its work is stopped."""
    max_queued: int = 1024
    """Requests that may wait at the ingress for a replica; the next one is refused, to be tried again later."""
    max_ongoing: int = 512
    """Most requests that one replica has at a time, running or waiting in its engine."""
    max_body_bytes: int = 1 << 20
    """Length of an HTTP body or a gRPC message; a context of 8,192 tokens is rarely longer than 40,000 characters."""
    default_max_tokens: int | None = None
    """Canvas length in tokens of a request that names none; None: the model's generation_config.json's, else 128."""

    def __post_init__(self) -> None:
        timeout = self.request_timeout_s
        require(0 < timeout < math.inf, f"limits.request_timeout_s must be positive and finite, got {timeout}")
        for name in ("max_queued", "max_ongoing", "max_body_bytes", "default_max_tokens"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"limits.{name} must be at least 1, got {value}")


@dataclass(frozen=True)
class ResourcesConfig:
    """Says what Ray reserves, in its own units."""

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
        if size != "auto" and size < LEAST_STORE_BYTES:
            raise ValueError(
                f"resources.object_store_bytes must be at least {LEAST_STORE_BYTES} (75 MiB), or auto; got {size}"
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


def load_config(path: Path | None, overrides: Mapping[str, Any] | None = None) -> ClusterConfig:
    """Return the configuration in the YAML file at `path`, with `overrides` (nested like the file) on top.

    Raises ConfigError, which names the file and every key at fault.
    """
    content: Any = {}
    if path is not None:
        try:
            content = yaml.safe_load(path.read_text()) or {}
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigError(f"{path}: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: a mapping of keys is expected at the top")
    try:
        return parse_config(_merged(content, overrides or {}))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}" if path else str(error)) from error


def parse_config(content: Mapping[str, Any]) -> ClusterConfig:
    """Return the configuration that a parsed YAML file holds. Raises ConfigError, which names every key at fault.

    This looks at no file: `worker.model` stays as it was written until `located` resolves it.
    """
    options = content.get("worker") or {}
    if isinstance(options, dict):
        if clash := [key for key in INJECTED if key in options]:
            raise ConfigError(f"worker.{clash[0]}: give {clash[0]} at the top level, once")
        options = {**options, **dict.fromkeys(INJECTED, "")}
    converter = _converter()
    try:
        config = converter.structure({**content, "worker": options}, ClusterConfig)
    except cattrs.BaseValidationError as error:
        raise ConfigError(
            "; ".join(cattrs.transform_error(error, path="config", format_exception=_explained))
        ) from error
    worker = replace(config.worker, model=Path(config.model), cache_service=config.cache_service.target)
    return replace(config, worker=worker)


def located(config: ClusterConfig) -> ClusterConfig:
    """Return the configuration with the model's directory on this machine. Raises ConfigError if it is missing."""
    try:
        directory = model_directory(config.model)
    except UnsupportedModelError as error:
        raise ConfigError(f"{error}; set `model` or --model") from error
    return replace(config, worker=replace(config.worker, model=directory))


def to_mapping(config: ClusterConfig) -> dict[str, Any]:
    """Return the configuration as plain values, as in YAML or JSON, from which `parse_config` restores it."""
    mapping: dict[str, Any] = _converter().unstructure(config)
    for key in INJECTED:
        del mapping["worker"][key]
    return mapping


def default_max_tokens(config: ClusterConfig) -> int:
    """Return the default canvas length of a request. Raises ConfigError for an unreadable generation_config.json."""
    if config.limits.default_max_tokens is not None:
        return config.limits.default_max_tokens
    path = config.worker.model / "generation_config.json"
    if not path.exists():
        return DEFAULT_MAX_TOKENS
    try:
        return int(json.loads(path.read_text()).get("max_new_tokens", DEFAULT_MAX_TOKENS))
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"{path} can't be read: {error}") from error


def serve_config_v2(config: ClusterConfig) -> dict[str, Any]:
    """Return the input of `serve deploy` and of a RayService's `serveConfigV2`, with the args of `cluster.app:build`.

    In a cluster every node runs a proxy, and both servers listen on all interfaces of their pod.
    """
    everywhere = replace(config, http=replace(config.http, host="0.0.0.0"), grpc=replace(config.grpc, host="0.0.0.0"))
    return {
        "proxy_location": "EveryNode",
        "http_options": {"host": everywhere.http.host, "port": everywhere.http.port},
        "applications": [
            {
                "name": APPLICATION,
                "route_prefix": "/",
                "import_path": "cluster.app:build",
                "args": to_mapping(everywhere),
            }
        ],
    }


def _merged(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """Merge `top` into `base`. A value that should be a mapping is kept, so that the converter refuses it by name."""
    merged = dict(base)
    for key, value in top.items():
        below = merged.get(key)
        if not isinstance(value, Mapping):
            merged[key] = value
        elif below is None or isinstance(below, Mapping):
            merged[key] = _merged(below or {}, value)
    return merged


def _converter() -> cattrs.Converter:
    """Return a strict converter: an unknown key is an error, and no value is turned into another type."""
    converter = cattrs.Converter(forbid_extra_keys=True)
    for kinds in ((bool,), (int,), (float, int), (str,)):
        converter.register_structure_hook(kinds[0], partial(_exactly, kinds))
    configure_union_passthrough(str | int | float | bool | None, converter)
    converter.register_structure_hook(Path, lambda value, _: Path(_exactly((str,), value, str)))
    converter.register_unstructure_hook(Path, str)
    return converter


def _exactly(kinds: tuple[type, ...], value: Any, _target: type) -> Any:
    if type(value) not in kinds:
        raise TypeError(f"expected {kinds[0].__name__}, got {value!r}")
    return value


def _explained(error: BaseException, target: type | None) -> str:
    """Return the message of our own class if that refused the value; else cattrs' description."""
    if type(error) in {TypeError, ValueError, Exception, InvalidRequest} and error.args:
        return str(error)
    return cattrs.v.format_exception(error, target)
