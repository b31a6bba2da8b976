"""The examples of README.md and docs/*.md are run as they stand, page by page, and print what the page shows.

Only ports are replaced, and the ids of contexts, which the service chooses. `tests/unit/test_documents.py` lists the
blocks that can't be run.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import BUNDLED
from tests.e2e.system import System, running
from tests.support.documents import COMMANDS, PAGES, ROOT, Block, blocks_of, differences, stream_differences
from tests.support.waiting import PATIENCE_S
from tests.unit.test_documents import LISTED
from workers.models.bundle import bundled_models

CONTEXT = re.compile(r"ctx-\d+-[0-9a-f]{8}")


@pytest.fixture(scope="module")
def fresh_system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """Start a system of its own: the numbers of cached tokens are those of one that has answered nothing yet."""
    if BUNDLED not in bundled_models():
        pytest.skip("the bundled model's weights are not in this checkout")
    with running(BUNDLED, tmp_path_factory.mktemp("docs") / "serve.log") as system:
        yield system


class Reader:
    """Runs the blocks of one page, in order, as a reader would."""

    def __init__(self, system: System) -> None:
        self._ports = {"8000": str(system.http_port), "9000": str(system.grpc_port)}
        self._ids: dict[str, str] = {}
        self._printed = ""

    def read(self, block: Block) -> Iterator[str]:
        """Run a command, or yield the differences between what a block shows and what the last command printed."""
        match block.language:
            case "sh" | "python" if block not in LISTED:
                self._printed = self._run(block)
            case "text":
                if self._printed.strip("\n") != block.text.strip("\n"):
                    yield f"{self._printed!r} was printed"
            case "json":
                shown, real = json.loads(block.text), json.loads(self._printed)
                self._ids.update(zip(CONTEXT.findall(block.text), CONTEXT.findall(self._printed), strict=False))
                yield from differences(shown, real)
            case "" if block.is_stream:
                yield from stream_differences(block.text, self._printed)

    def _run(self, block: Block) -> str:
        text = re.sub(r"(?<=127\.0\.0\.1:)(8000|9000)", lambda match: self._ports[match[1]], block.text)
        text = CONTEXT.sub(lambda match: self._ids.get(match[0], match[0]), text)
        program = [sys.executable, "-c"] if block.language == "python" else ["bash", "-euo", "pipefail", "-c"]
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        done = subprocess.run(
            [*program, text],
            cwd=ROOT,
            env={**os.environ, "PATH": path},
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert done.returncode == 0, f"{block} ended with {done.returncode}: {done.stderr}"
        return done.stdout


@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(b.language in COMMANDS for b in blocks_of(page))], ids=str
)
def test_the_examples_of_a_page_print_what_it_shows(fresh_system: System, page: Path) -> None:
    reader = Reader(fresh_system)
    wrong = [f"{block}: {difference}" for block in blocks_of(page) for difference in reader.read(block)]

    assert not wrong, "\n".join(wrong)
