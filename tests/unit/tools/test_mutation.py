"""Mutants differ from their module in one place, and keep their names when lines move."""

from __future__ import annotations

import ast

import pytest

from tools.mutation.__main__ import all_mutants, outcome_of
from tools.mutation.equivalent import EQUIVALENT
from tools.mutation.mutants import mutants_of, mutated

SOURCE = '''
LIMIT = 3

def clamp(value, *, strict=False):
    """Return `value`, at most LIMIT."""
    if value < 0 or strict and value == 0:
        raise ValueError("too low")
    seen.append(value)
    return min(value + 1, LIMIT)
'''


def changed(source: str) -> dict[str, str]:
    return {mutant.name: ast.unparse(mutated(source, mutant.index)) for mutant in mutants_of("m", source)}


def test_each_mutant_is_another_program() -> None:
    mutants = changed(SOURCE)
    assert len(set(mutants.values())) == len(mutants)
    assert ast.unparse(ast.parse(SOURCE)) not in mutants.values()


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("m.clamp: `value < 0` compares with LtE", "if value <= 0 or (strict and value == 0):"),
        ("m.clamp: `strict and value == 0` joins with Or", "if value < 0 or (strict or value == 0):"),
        ("m.clamp: `value + 1` computes with Sub", "return min(value - 1, LIMIT)"),
        ("m.clamp: `return min(value + 1, LIMIT)` returns None", "return None"),
    ],
)
def test_a_mutant_has_the_change_that_its_name_says(name: str, line: str) -> None:
    assert line in changed(SOURCE)[name]


def test_statements_can_be_left_out_but_neither_docstrings_nor_constants_of_the_module() -> None:
    names = list(changed(SOURCE))
    assert [name for name in names if "is left out" in name] == [
        "m.clamp: `seen.append(value)` is left out",
        "m.clamp: `raise ValueError('too low')` is left out",
    ]
    assert not any("LIMIT`" in name or "at most" in name or "becomes 4" in name for name in names)


def test_names_stay_when_lines_move() -> None:
    assert list(changed(SOURCE)) == list(changed("import os\n\n\n" + SOURCE))


def test_every_mutant_of_the_core_has_a_name_of_its_own_and_equivalent_ones_exist() -> None:
    names = [mutant.name for mutant in all_mutants()]
    assert len(set(names)) == len(names)
    assert EQUIVALENT.keys() <= set(names)


@pytest.mark.parametrize(("status", "outcome"), [(0, "survived"), (1, "killed"), (2, "killed"), (70, "error 70")])
def test_only_failed_tests_kill(status: int, outcome: str) -> None:
    assert outcome_of(status) == outcome
