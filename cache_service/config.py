"""Configure an instance of the cache service. An unknown key is an error that names it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import cattrs
import yaml
from cattrs.errors import ClassValidationError

from cache_service.core.quotas import ContextQuotas
from cache_service.errors import InvalidRequest


def address_of(host: str, port: int) -> str:
    """Return HOST:PORT as gRPC and URLs write it: an IPv6 address is put in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@dataclass(frozen=True)
class ServerConfig:
    """Configures one instance of the service."""

    host: str = "127.0.0.1"
    """Address that the instance listens at."""
    port: int = 7070
    """The port to listen on; 0 takes a free one."""
    metrics_port: int | None = None
    """The port on which Prometheus can scrape metrics; None serves no metrics."""
    store: str = field(default="memory:", repr=False)
    """Location of the log: memory:, or the URL of a Redis-protocol server, which several instances may share.
    It is never shown, since it may hold a password."""
    allow_evicting_store: bool = False
    """Accept a Redis-protocol server that evicts keys once its memory is full (`maxmemory-policy` allkeys-...). It may
    lose shared contexts at any time, and every loss begins a new incarnation."""
    store_timeout_s: float = 1.0
    """Seconds that the store may take to answer."""
    history: int = 65_536
    """The number of events kept for watchers that lag, as long as they hold no more than 4,000,000 tokens of contexts;
    one that falls further behind gets a snapshot."""
    tick_s: float = 0.25
    """Seconds between checks for lapsed leases and for contexts whose time to live has passed: a dead member is
    removed within its TTL plus this time."""
    grace_s: float = 2.0
    """Seconds that calls in progress may take to end at shutdown."""
    contexts: ContextQuotas = field(default_factory=ContextQuotas)
    """Quotas of shared contexts. Instances that share a store need the same."""

    def __post_init__(self) -> None:
        for name, value in (("port", self.port), ("metrics_port", self.metrics_port or 0)):
            if not 0 <= value <= 65_535:
                raise InvalidRequest(f"{name} must lie within 0 and 65535, got {value}")
        if self.history < 1:
            raise InvalidRequest(f"history must be at least 1 event, got {self.history}")
        for name, value_s in (("tick_s", self.tick_s), ("store_timeout_s", self.store_timeout_s)):
            if not 0 < value_s < math.inf:
                raise InvalidRequest(f"{name} must be a finite number of seconds above 0, got {value_s}")
        if not 0 <= self.grace_s < math.inf:
            raise InvalidRequest(f"grace_s must be a finite number of seconds from 0, got {self.grace_s}")


def load(path: Path | None, overrides: Mapping[str, object]) -> ServerConfig:
    """Load the YAML file at `path`; `overrides` take precedence. Raises InvalidRequest, which names the fault."""
    try:
        given = yaml.safe_load(path.read_text()) if path else None
    except yaml.MarkedYAMLError as error:  # its own text shows the line, which may hold a password
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise InvalidRequest(f"can't read the config {path}: {error.problem}, line {line}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InvalidRequest(f"can't read the config {path}: {error}") from error
    if not isinstance(given, dict | None) or not all(isinstance(key, str) for key in given or ()):
        raise InvalidRequest(f"the config {path} must be a mapping of keys to values")
    converter = cattrs.Converter(forbid_extra_keys=True, prefer_attrib_converters=True)
    try:
        return converter.structure({**(given or {}), **overrides}, ServerConfig)
    except ClassValidationError as error:
        raise InvalidRequest("; ".join(cattrs.transform_error(error, path="config"))) from error
