"""Read the configuration from a YAML file, strictly, and write it for other processes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import cattrs
import yaml
from cattrs.strategies import configure_union_passthrough

from cache_service.errors import InvalidRequest
from cluster.config import APPLICATION, DERIVED_WORKER_KEYS, ClusterConfig
from cluster.errors import ConfigError
from workers.errors import UnsupportedModelError
from workers.models.bundle import model_directory

DEFAULT_MAX_TOKENS = 128


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
        raise ConfigError(f"{path}: the file must hold a mapping of keys")
    try:
        return parse_config(_merged(content, overrides or {}))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}" if path else str(error)) from error


def parse_config(content: Mapping[str, Any]) -> ClusterConfig:
    """Return the configuration that a parsed YAML file holds. Raises ConfigError, which names every key at fault.

    This looks at no file: `worker.model` stays as it was written until `resolve_model_directory` resolves it.
    """
    options = content.get("worker") or {}
    if isinstance(options, dict):
        if clash := [key for key in DERIVED_WORKER_KEYS if key in options]:
            raise ConfigError(f"worker.{clash[0]}: give {clash[0]} at the top level, once")
        options = {**options, **dict.fromkeys(DERIVED_WORKER_KEYS, "")}
    converter = _converter()
    try:
        config = converter.structure({**content, "worker": options}, ClusterConfig)
    except cattrs.BaseValidationError as error:
        raise ConfigError(
            "; ".join(cattrs.transform_error(error, path="config", format_exception=_explained))
        ) from error
    worker = replace(config.worker, model=Path(config.model), cache_service=config.cache_service.target)
    return replace(config, worker=worker)


def resolve_model_directory(config: ClusterConfig) -> ClusterConfig:
    """Return the configuration with the model's directory on this machine. Raises ConfigError if it is missing."""
    try:
        directory = model_directory(config.model)
    except UnsupportedModelError as error:
        raise ConfigError(f"{error}; set `model` or --model") from error
    return replace(config, worker=replace(config.worker, model=directory))


def to_mapping(config: ClusterConfig) -> dict[str, Any]:
    """Return the configuration as plain values, as in YAML or JSON, from which `parse_config` restores it."""
    mapping: dict[str, Any] = _converter().unstructure(config)
    for key in DERIVED_WORKER_KEYS:
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
    """Merge `top` into `base`, mapping by mapping. Values of a wrong type are kept, for the converter to refuse."""
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
    """Return the message of the dataclass that refused the value, else cattrs' description."""
    if type(error) in {TypeError, ValueError, Exception, InvalidRequest} and error.args:
        return str(error)
    return cattrs.v.format_exception(error, target)
