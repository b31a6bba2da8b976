from __future__ import annotations

from pathlib import Path

import pytest
from typer import Exit

from tools.check_docstrings import findings, first_sentence, main, problem

SAMPLE = '''"""Of a module."""


class A:
    """For one request."""

    field: int = 0
    """Of a field."""

    async def run(self) -> None:
        """What it runs."""


def fine() -> None:
    """Do nothing."""
'''


@pytest.mark.parametrize(
    "sentence",
    [
        "Return the replicas that hold `key`.",
        "`python -m cache_service` runs one instance.",
        "A worker has one engine.",
        "Of two findings about one bucket, the later one counts.",
        "With `awaits`, entries begin as awaited.",
        "What is cached decides how long an answer takes.",
        "Where the budget has no room, return None.",
        "As in the paper, layers count from 0.",
        "In each layer the rows' keys are written first.",
    ],
)
def test_a_sentence_passes(sentence: str) -> None:
    assert problem(sentence) is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Of one request.", "'of'"),
        ("What came of it.", "'what'"),
        ("Whether there is something to compute for it.", "'whether'"),
        ("Which requests run, and what each does.", "'which'"),
        ("How many bytes the page pool gets.", "'how'"),
        ("By names; without a dtype, float32.", "'by'"),
        ("The same rows in fewer slices.", "'the same'"),
        ("With the seats that it reads.", "'with'"),
        ("Where a request stands.", "'where'"),
        ("return the key.", "small letter"),
        ("Return the key", "full stop"),
        ("Return the key:", "full stop"),
    ],
)
def test_a_clause_does_not(text: str, reason: str) -> None:
    assert reason in (problem(text) or "")


def test_only_the_first_sentence_counts() -> None:
    assert first_sentence("Return it. of all.\n\nmore") == "Return it."
    assert first_sentence("Return the norm (eq. 4) of\nall rows. Then more.") == "Return the norm (eq. 4) of all rows."
    assert first_sentence("Return it\n\nand more.") == "Return it"


def test_modules_classes_and_functions_are_read_but_no_attributes(tmp_path: Path) -> None:
    file = tmp_path / "sample.py"
    file.write_text(SAMPLE)
    assert [(finding.name, finding.line) for finding in findings(file)] == [("sample", 1), ("A", 5), ("run", 11)]


def test_the_maximum_is_a_ratchet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sample.py").write_text('"""Of a module."""\n')
    (tmp_path / "sample_pb2.py").write_text('"""Of generated code."""\n')

    with pytest.raises(Exit) as left:
        main([tmp_path], 0)
    assert left.value.exit_code == 1
    assert "sample.py:1: sample: 'of'" in capsys.readouterr().out

    main([tmp_path], 1)
    assert capsys.readouterr().out == ""

    main([tmp_path], 2)
    assert "lower --max" in capsys.readouterr().out
