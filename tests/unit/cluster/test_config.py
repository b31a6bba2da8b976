from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.api_keys import ApiKeysConfig
from cluster.config import ClusterConfig
from cluster.config_file import (
    default_max_tokens,
    load_config,
    parse_config,
    resolve_model_directory,
    serve_config_v2,
    to_mapping,
)
from cluster.errors import ConfigError

COMMITTED = Path(__file__).parents[3] / "deploy" / "palimpsest.yaml"


def parse(random_model: Path, **content: Any) -> ClusterConfig:
    return parse_config({"model": str(random_model), **content})


def test_an_empty_file_equals_the_committed_one(random_model: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty.yaml"
    empty.touch()
    model = {"model": str(random_model)}

    assert load_config(COMMITTED, model) == load_config(empty, model) == load_config(None, model)


def test_options_override_the_file(random_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({"model": "nowhere", "http": {"port": 1, "host": "::1"}, "replicas": 3}))

    config = load_config(file, {"model": str(random_model), "http": {"port": 2}})

    assert (config.http.port, config.http.host, config.replicas) == (2, "::1", 3)


def test_the_worker_takes_model_and_cache_service_from_the_top_level(random_model: Path) -> None:
    config = parse(random_model, cache_service={"host": "cache", "port": 1}, worker={"engine": {"max_batch": 3}})

    assert config.worker.model == random_model
    assert config.worker.cache_service == "cache:1"
    assert config.worker.engine.max_batch == 3
    assert config.name == random_model.name
    assert parse(random_model, served_name="mine").name == "mine"


def test_all_instances_of_the_cache_service_are_known(random_model: Path) -> None:
    config = parse(random_model, cache_service={"host": "a", "port": 1, "others": ["b:2", "c:3"]})

    assert config.worker.cache_service == "a:1,b:2,c:3"
    assert config.cache_service.hosts == {"a", "b", "c"}


def test_an_ipv6_address_stands_in_brackets(random_model: Path) -> None:
    config = parse(random_model, cache_service={"host": "::1", "port": 1, "others": ["[fe80::2]:2"]})

    assert config.worker.cache_service == "[::1]:1,[fe80::2]:2"
    assert config.cache_service.hosts == {"::1", "fe80::2"}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"modle": "x"}, ["modle", "config"]),
        ({"http": {"prt": 1}}, ["prt", "config.http"]),
        ({"http": {"port": "80"}}, ["int", "'80'", "config.http.port"]),
        ({"limits": {"request_timeout_s": True}}, ["float", "config.limits.request_timeout_s"]),
        ({"worker": {"engine": {"max_batch": 0}}}, ["max_batch must be at least 1"]),
        ({"worker": {"device": "tpu"}}, ["tpu", "config.worker.device"]),
        ({"worker": {"model": "x"}}, ["worker.model", "top level"]),
        ({"worker": {"engine": {"policy": "psychic"}}}, ["engine.policy must be one of", "lean", "psychic"]),
        ({"worker": {"lease_ttl_s": float("inf")}}, ["worker.lease_ttl_s", "inf"]),
        ({"http": {"port": 65_536}}, ["http.port", "0..65535"]),
        ({"grpc": {"port": 70_000}}, ["grpc.port", "70000"]),
        ({"cache_service": {"port": -1}}, ["cache_service.port", "-1"]),
        ({"cache_service": {"others": ["b"]}}, ["cache_service.others", "HOST:PORT", "'b'"]),
        ({"cache_service": {"others": ["b:99999"]}}, ["cache_service.others", "99999"]),
        ({"cache_service": {"contexts": {"max_total": 0}}}, ["contexts.max_total must be at least 1", "cache_service"]),
        ({"limits": {"request_timeout_s": 0.0}}, ["limits.request_timeout_s", "positive"]),
        ({"limits": {"request_timeout_s": float("nan")}}, ["limits.request_timeout_s", "nan"]),
        ({"limits": {"max_queued": -1}}, ["limits.max_queued must be at least 1"]),
        ({"limits": {"max_ongoing": 0}}, ["limits.max_ongoing must be at least 1"]),
        ({"limits": {"max_body_bytes": 0}}, ["limits.max_body_bytes must be at least 1"]),
        ({"limits": {"default_max_tokens": 0}}, ["limits.default_max_tokens must be at least 1"]),
        ({"resources": {"worker_cpus": -1.0}}, ["resources.worker_cpus"]),
        ({"router": {"queued": float("nan")}}, ["router.queued", "nan"]),
        ({"replicas": 0}, ["replicas must be at least 1"]),
        ({"replicas": "two"}, ["two", "config.replicas"]),
        ({"resources": {"object_store_bytes": 1 << 20}}, ["resources.object_store_bytes must be at least 78643200"]),
        ({"resources": {"object_store_bytes": "much"}}, ["much", "config.resources.object_store_bytes"]),
    ],
)
def test_what_is_wrong_is_named(random_model: Path, content: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_config({"model": str(random_model)} | content)

    assert [word for word in words if word not in str(refused.value)] == []


def test_a_missing_model_is_named() -> None:
    with pytest.raises(ConfigError, match=r"no-such-model.*--model"):
        resolve_model_directory(parse_config({"model": "no-such-model"}))


def test_a_value_in_the_place_of_a_section_is_named_whatever_the_options(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("http: 5")

    with pytest.raises(ConfigError, match=r"config\.http"):
        load_config(file, {"http": {"port": 8080}})


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_bytes(b"\xff\xfe\x00")

    with pytest.raises(ConfigError, match=str(file)):
        load_config(file)


@pytest.mark.parametrize("text", ["[1, 2]", "a: b: c", "- x"])
def test_a_file_that_is_no_mapping_is_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text)

    with pytest.raises(ConfigError, match=str(file)):
        load_config(file)


def test_serve_gets_the_same_configuration(random_model: Path) -> None:
    config = parse(random_model, replicas=3, worker={"num_threads": 2}, api_keys={"env": "KEYS"})

    content = serve_config_v2(config)

    [application] = content["applications"]
    assert application["import_path"] == "cluster.app:build"
    assert content["http_options"] == {"host": "0.0.0.0", "port": 8000}
    args = yaml.safe_load(yaml.safe_dump(application["args"]))
    listening_everywhere = to_mapping(config) | {"http": args["http"], "grpc": args["grpc"]}
    assert args == listening_everywhere
    assert parse_config(args).worker == config.worker
    assert {args["http"]["host"], args["grpc"]["host"]} == {"0.0.0.0"}


def test_the_default_canvas_is_the_models_own(random_model: Path, tmp_path: Path) -> None:
    assert default_max_tokens(parse(random_model)) == 16
    assert default_max_tokens(parse(random_model, limits={"default_max_tokens": 99})) == 99

    (tmp_path / "config.json").touch()
    assert default_max_tokens(parse(tmp_path)) == 128
    (tmp_path / "generation_config.json").write_text("[")
    with pytest.raises(ConfigError, match=r"generation_config\.json"):
        default_max_tokens(parse(tmp_path))


def test_api_keys_come_from_a_variable_and_a_file(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("one\n\n two \n")

    assert ApiKeysConfig().read({}) == frozenset()
    assert ApiKeysConfig(env="KEYS", file=file).read({"KEYS": "three, four"}) == {"one", "two", "three", "four"}


@pytest.mark.parametrize("keys", [ApiKeysConfig(env="KEYS"), ApiKeysConfig(file=Path("/nowhere/keys"))])
def test_a_named_source_without_a_key_opens_nothing(keys: ApiKeysConfig) -> None:
    with pytest.raises(ConfigError, match="api_keys"):
        keys.read({"KEYS": " , "})
