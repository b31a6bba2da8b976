"""The command lines in an installation without extras, whose modules can't be imported."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution, requires
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[3]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]


def with_dependencies(requirements: list[str], found: set[str]) -> set[str]:
    """Return the names of the distributions that an installation of `requirements` brings here."""
    for requirement in requirements:
        name = re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
        if "extra ==" not in requirement and name not in found:
            try:
                further = requires(name) or []
            except PackageNotFoundError:  # another platform's
                continue
            found.add(name)
            with_dependencies(further, found)
    return found


@pytest.fixture(scope="session")
def bare(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return an environment for `python -S` in which only what the package itself depends on can be imported."""
    folder = tmp_path_factory.mktemp("bare")
    for name in with_dependencies(PROJECT["dependencies"], {"palimpsest"}):
        installed = distribution(name)
        for top in {path.parts[0] for path in installed.files or () if path.parts[0] not in {"..", "__pycache__"}}:
            source = Path(str(installed.locate_file(top)))
            if not (folder / top).exists() and source.suffix != ".pth":
                (folder / top).symlink_to(source)
    return {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{REPOSITORY}"}


def run(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-S", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("arguments", [("--help",), ("serve", "--help"), ("profile", "--help"), ("--version",)])
def test_the_command_line_explains_itself_without_any_extra(bare: dict[str, str], arguments: tuple[str, ...]) -> None:
    shown = run(bare, "-m", "cluster.cli", *arguments)

    assert (shown.returncode, shown.stderr) == (0, "")
    assert "serve" in shown.stdout or "palimpsest 0." in shown.stdout or "prompts" in shown.stdout.lower()


@pytest.mark.parametrize(
    ("arguments", "extra", "module"),
    [
        (("cluster.cli", "serve"), "serve", "ray"),
        (("cluster.cli", "profile", "factbook", "--prompts", __file__), "serve", "torch"),
        (("cache_service",), "cache", "cattrs"),
    ],
)
def test_a_command_names_the_extra_that_it_needs(
    bare: dict[str, str], arguments: tuple[str, ...], extra: str, module: str
) -> None:
    refused = run(bare, "-m", *arguments)

    assert refused.returncode == 2
    assert f"pip install 'palimpsest[{extra}]'" in refused.stderr
    assert module in refused.stderr
    assert "Traceback" not in refused.stderr


def test_the_cache_services_command_line_explains_itself_too(bare: dict[str, str]) -> None:
    assert run(bare, "-m", "cache_service", "--help").returncode == 0


def test_make_refuses_another_python_before_it_announces_an_installation(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text((REPOSITORY / name).read_text())

    command = ["make", "setup", "PYTHON=false"]
    refused = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert refused.returncode != 0
    assert "needs Python 3.11 or 3.12" in refused.stdout
    assert "Installing" not in refused.stdout
