from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.cli import app, drop_none
from cluster.config import ClusterConfig
from cluster.supervisor import supervisor


def test_the_version_is_shown() -> None:
    result = CliRunner().invoke(app, ["--version"])

    assert result.exit_code == 0
    assert result.output.startswith("palimpsest 0.")


def test_options_become_a_configuration(random_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[tuple[ClusterConfig, str]] = []

    def run(config: ClusterConfig, _environ: object) -> int:
        started.append(config)
        return 3

    monkeypatch.setattr(supervisor, "run", run)
    options = (
        "--replicas 3 --host 0.0.0.0 --http-port 1 --grpc-port 2 --cache-port 4 --log-level debug --log-format json"
    )
    result = CliRunner().invoke(app, ["serve", "--model", str(random_model), *options.split()])

    [config] = started
    assert result.exit_code == 3
    assert (config.worker.model, config.replicas) == (random_model, 3)
    assert (config.logs.level, config.logs.format) == ("DEBUG", "json")
    assert (config.http.host, config.grpc.host, config.cache_service.host) == ("0.0.0.0", "0.0.0.0", "127.0.0.1")
    assert (config.http.port, config.grpc.port, config.cache_service.port) == (1, 2, 4)


@pytest.mark.parametrize("options", [["--model", "no-such-model"], ["--config", "/nowhere.yaml"]])
def test_an_error_is_one_line(options: list[str]) -> None:
    result = CliRunner().invoke(app, ["serve", *options])

    assert result.exit_code == 2
    assert result.stderr.startswith("palimpsest: ")
    assert options[1] in result.stderr


def test_an_unknown_log_level_is_refused() -> None:
    result = CliRunner().invoke(app, ["serve", "--log-level", "loud"])

    assert result.exit_code == 2
    assert "--log-level" in result.output


def test_missing_api_keys_are_reported_before_anything_starts(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("api_keys: {env: PALIMPSEST_KEYS_OF_NOBODY}")
    result = CliRunner().invoke(app, ["serve", "--config", str(file)])

    assert result.exit_code == 2
    assert "PALIMPSEST_KEYS_OF_NOBODY" in result.stderr


def test_absent_options_are_left_to_the_file() -> None:
    assert drop_none({"a": None, "b": {"c": None}, "d": {"e": 0, "f": None}}) == {"d": {"e": 0}}
