"""The images: linted, pinned, without root, and built from files that exist."""

from __future__ import annotations

import subprocess
import tomllib
from pathlib import Path

import pytest

from cluster.supervisor.supervisor import SERVE_ENVIRONMENT
from workers.ray_internals import LOG_SETTINGS


@pytest.fixture(params=["cache", "serve"])
def dockerfile(request: pytest.FixtureRequest, repository: Path) -> Path:
    return repository / "deploy" / "docker" / f"{request.param}.Dockerfile"


def instructions(dockerfile: Path, name: str) -> list[list[str]]:
    """Return the arguments of every `name` instruction, in order; only RUN spans lines in our files."""
    words = [line.split() for line in dockerfile.read_text().splitlines()]
    return [arguments for first, *arguments in filter(None, words) if first == name]


def local_sources(dockerfile: Path) -> list[str]:
    copies = [arguments for arguments in instructions(dockerfile, "COPY") if not arguments[0].startswith("--from")]
    return [source for *sources, _ in copies for source in sources]


def lint(hadolint: str, dockerfile: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([hadolint, str(dockerfile)], check=False, capture_output=True, text=True)


def test_hadolint_has_nothing_to_say(dockerfile: Path, hadolint: str) -> None:
    result = lint(hadolint, dockerfile)
    assert (result.returncode, result.stdout) == (0, "")


def test_hadolint_catches_a_planted_error(dockerfile: Path, hadolint: str, tmp_path: Path) -> None:
    wrong = tmp_path / "Dockerfile"
    wrong.write_text(dockerfile.read_text() + "USER root\n")
    assert "DL3002" in lint(hadolint, wrong).stdout


def test_what_is_copied_exists_and_reaches_the_build(dockerfile: Path, repository: Path) -> None:
    ignore = dockerfile.with_name(dockerfile.name + ".dockerignore").read_text().splitlines()
    allowed = {line.removeprefix("!") for line in ignore if line.startswith("!")}
    assert set(local_sources(dockerfile)) == allowed
    for source in allowed:
        assert (repository / source).exists(), source


def test_python_packages_are_pinned(dockerfile: Path, repository: Path) -> None:
    installs = [line for line in dockerfile.read_text().splitlines() if "pip install" in line]
    arguments = dict(word.split("=") for [word] in instructions(dockerfile, "ARG") if "=" in word)
    package = {"cache": "'.[redis]'", "serve": '".[${EXTRA}]"'}[dockerfile.stem]
    assert installs == [f"RUN /opt/venv/bin/pip install --constraint constraints.txt {package}"]
    extra = arguments.get("EXTRA", "redis")
    extras = tomllib.loads((repository / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert extra in extras


def test_the_image_starts_without_root(dockerfile: Path) -> None:
    assert instructions(dockerfile, "USER") == [["1000:1000"]]


def test_serve_is_set_as_on_one_machine(repository: Path) -> None:
    lines = instructions(repository / "deploy" / "docker" / "serve.Dockerfile", "ENV")
    variables = dict(word.split("=", 1) for line in lines for word in line)
    assert {**variables, **SERVE_ENVIRONMENT, **LOG_SETTINGS} == variables


def test_the_cache_image_knows_neither_torch_nor_ray(repository: Path) -> None:
    sources = local_sources(repository / "deploy" / "docker" / "cache.Dockerfile")
    assert not {"workers", "cluster"} & set(sources)
