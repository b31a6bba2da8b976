"""`palimpsest profile` on the bundled model and a small conversation file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.cli import app
from cluster.profiling import PromptFileError, conversation_samples
from workers.models.bundle import model_directory
from workers.models.loader import read_depth_table

SHEET = {"role": "system", "content": "Mira is 34, lives in Oslo and has a fox. Tobin is 29."}
QUESTION = {"role": "user", "content": "Who is older, Mira or Tobin?"}
ANSWER = {"role": "assistant", "content": "Mira."}


def write(path: Path, *lines: object) -> Path:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


def test_a_conversation_is_cut_where_the_server_cuts_it(tmp_path: Path) -> None:
    """After four turns the sheet is less than half of the prompt before the last one."""
    turns = [QUESTION, ANSWER]
    lines = [{"messages": [SHEET, *turns * count]} for count in (1, 2, 5)]
    short, later, long = conversation_samples(write(tmp_path / "p.jsonl", *lines), model_directory("factbook"), 16)
    assert later.token_ids[: short.prefix] == short.token_ids[: short.prefix]
    assert short.prefix == later.prefix < long.prefix < len(long.token_ids) - 16
    assert [sample.has_later_turns for sample in (short, later, long)] == [False, True, True]
    assert short.canvas == 16


@pytest.mark.parametrize(
    "line",
    [
        "no json",
        {"prompt": "x"},
        {"messages": [SHEET]},
        {"messages": [SHEET | {"content": "\ud800"}, QUESTION]},
        "[" * 100_000,
    ],
)
def test_a_line_that_is_no_conversation_is_named(tmp_path: Path, line: object) -> None:
    path = write(tmp_path / "p.jsonl", {"messages": [SHEET, QUESTION]}, line)
    with pytest.raises(PromptFileError, match="line 2"):
        list(conversation_samples(path, model_directory("factbook"), 16))


def test_the_command_writes_a_table_and_a_picture(tmp_path: Path) -> None:
    prompts = write(tmp_path / "p.jsonl", {"messages": [SHEET, QUESTION]})
    arguments = ["profile", "factbook", "--prompts", str(prompts), "--output", str(tmp_path), "--canvas", "8"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    table = read_depth_table(tmp_path)
    assert table is not None
    assert table[0] == 0
    assert "<svg" in (tmp_path / "depth_table.svg").read_text()


@pytest.mark.parametrize(
    ("content", "options", "words"),
    [
        (b"x", [], "line 1"),
        (b"", [], "no conversation"),
        (json.dumps({"messages": [QUESTION]}).encode(), [], "no conversation"),
        (b"\xff\xfe", [], "can't be read"),
        (json.dumps({"messages": [SHEET, QUESTION]}).encode(), ["--canvas", "5000"], "--canvas"),
        (json.dumps({"messages": [SHEET, QUESTION]}).encode(), ["--output", "{prompts}/below"], "--output"),
    ],
)
def test_the_command_says_what_is_wrong(tmp_path: Path, content: bytes, options: list[str], words: str) -> None:
    prompts, output = tmp_path / "p.jsonl", tmp_path / "new" / "output"
    prompts.write_bytes(content)
    given = [option.format(prompts=prompts) for option in options]
    arguments = ["profile", "factbook", "--prompts", str(prompts), "--output", str(output), *given]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2
    assert words in done.output
    assert not (output / "depth_table.json").exists()
