"""Every fenced block of the documentation is either run against a live system or listed here, and then parsed."""

from __future__ import annotations

import ast
import subprocess
from itertools import pairwise

import pytest
import yaml

from tests.support.documents import COMMANDS, FIGURES, Block, all_blocks, differences, stream_differences

PARSED_ONLY = {
    ("README.md", "make serve    # installs everything (once), then starts the "),
    ("docs/deploy.md", "$EDITOR deploy/kustomize/overlays/gpu/palimpsest.yaml"),
    ("docs/deploy.md", "docker build -f deploy/docker/cache.Dockerfile -t REGISTRY/p"),
    ("docs/deploy.md", "kubectl create secret generic palimpsest-api-keys --from-lit"),
    ("docs/deploy.md", "kubectl create secret generic palimpsest-redis --from-litera"),
    ("docs/deploy.md", "python -m pip install --no-index --find-links wheels 'palimp"),
    ("docs/deploy.md", "python -m pip wheel -c constraints.txt -w wheels '.[serve,re"),
    ("docs/models.md", "# workers/models/mine.py"),
    ("docs/models.md", "palimpsest profile DIR --prompts conversations.jsonl"),
    ("docs/operations.md", "python -m cache_service --port 7070 --store redis://host:637"),
    ("docs/performance.md", "python -m benchmarks.engine --model llada-8b --device cuda -"),
}
"""Commands that a test can't run, by page and beginning: they need Docker, Kubernetes, a GPU, an editor or a name."""
BLOCKS = all_blocks()
LISTED = [block for block in BLOCKS if (block.page, block.beginning) in PARSED_ONLY]


def test_the_list_names_existing_blocks() -> None:
    assert {(block.page, block.beginning) for block in LISTED} == PARSED_ONLY


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language], ids=str)
def test_every_language_is_one_that_is_checked(block: Block) -> None:
    assert block.language in COMMANDS | FIGURES | {"json", "text", "yaml"}


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language in {"sh", "python", "yaml"}], ids=str)
def test_every_program_can_be_parsed(block: Block) -> None:
    match block.language:
        case "sh":
            subprocess.run(["bash", "-n"], input=block.text, text=True, check=True)
        case "python":
            ast.parse(block.text)
        case "yaml":
            assert yaml.safe_load(block.text)


def test_every_output_follows_a_command_that_is_run() -> None:
    for before, block in pairwise([None, *BLOCKS]):
        if block is not None and block.is_output:
            assert before is not None, block
            assert before.language in COMMANDS, block
            assert before not in LISTED, block


def test_differences_are_found() -> None:
    shown = {"id": "a", "content": "x", "usage": {"n": 1}, "none": None, "items": [{"a": 1}]}
    assert list(differences(shown, shown | {"id": "b", "none": "probe"})) == []
    for change in (
        {"content": "y"},
        {"usage": {"n": "1"}},
        {"usage": {}},
        {"more": 1},
        {"items": []},
        {"items": [{"b": 1}]},
    ):
        assert list(differences(shown, shown | change)), change

    stream = 'data: {"id": "chat-1...", ..., "choices": [{"delta": {}, ...}], "diffusion": {...}}\n\ndata: [DONE]\n'
    real = (
        'data: {"id": "chat-123", "x": 1, "choices": [{"delta": {}, "y": 1}], "diffusion": {"z": 2}}\n\ndata: [DONE]\n'
    )
    assert list(stream_differences(stream, real)) == []
    assert list(stream_differences(stream, real.replace("choices", "chosen")))
    assert list(stream_differences(stream, real.replace("data: [DONE]", "")))
