"""Finds docstrings that are not sentences: `python -m tools.check_docstrings --max 12 workers cluster`.

It reads the docstrings of modules, classes and functions. The first sentence of each must begin with a capital letter
or with code, end with a full stop, and be more than a clause that hangs on the name above it ("Of one request.",
"Whether it is live."). `--max` is a ratchet: so many may be left, and no more.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

PREPOSITIONS = frozenset(
    "about after among around as at before behind between by for from in of on over through to under with within "
    "without".split()
)
CONJUNCTIONS = frozenset(
    "how if since so than that until what when where whether which while who whom whose why".split()
)
OPENERS = PREPOSITIONS | CONJUNCTIONS | {"the same"}
"""What a clause or a phrase begins with that needs a main verb behind it to be a sentence."""

AUXILIARIES = frozenset(
    "is are was were has have had does do did can may must will would should could isn't aren't doesn't don't".split()
)
VERBS = frozenset(
    "add admit answer apply ask assign become begin belong bring build call carry change check choose claim "
    "commit compare compute contain copy cost count decide depend describe drop end enter evict exist expect fail "
    "fetch fill find follow forget give go grow hear hold join keep know lead leave let lie lose make mean move "
    "name need note notify obtain open overwrite own pass put raise read receive refresh refuse register release "
    "remember remove report return reuse run say see send serve set share show speak stand start stay stop store "
    "take talk tell turn use wait want work write yield".split()
)
"""Base forms of the verbs that are recognized."""


@dataclass(frozen=True)
class Finding:
    """A docstring that is not a sentence, and why."""

    path: Path
    line: int
    name: str
    reason: str
    sentence: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.name}: {self.reason}: {self.sentence}"


def findings(path: Path) -> Iterator[Finding]:
    """Yield what is wrong with the docstrings of one file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        text = ast.get_docstring(node)
        if text is None:
            continue
        sentence = first_sentence(text)
        if reason := problem(sentence):
            name = path.stem if isinstance(node, ast.Module) else node.name
            yield Finding(path, node.body[0].lineno, name, reason, sentence)


def first_sentence(text: str) -> str:
    """Return the first sentence of a docstring on one line; its first paragraph if nothing ends it earlier."""
    paragraph = " ".join(text.split("\n\n", maxsplit=1)[0].split())
    found = re.match(r".+?(?<!\beq)(?<!\be\.g)(?<!\bi\.e)[.!?](?=\s|$)", paragraph)
    return found.group() if found else paragraph


def problem(sentence: str) -> str | None:
    """Return why a text is no sentence; None if it seems to be one."""
    if not re.match(r"[A-Z`\d\"(]", sentence):
        return "it begins with a small letter"
    if not sentence.endswith("."):
        return "no full stop ends it"
    opener = opening(sentence)
    if opener and not has_main_verb(sentence, opener):
        return f"{opener!r} opens a clause without a main verb"
    return None


def opening(sentence: str) -> str | None:
    """Return the clause opener that a sentence begins with, if there is one."""
    if sentence.startswith("`"):
        return None
    words = words_of(sentence)
    if " ".join(words[:2]) in OPENERS:
        return " ".join(words[:2])
    return words[0] if words and words[0] in OPENERS else None


def has_main_verb(sentence: str, opener: str) -> bool:
    """Return whether a verb stands in a sentence that belongs neither to its opening clause nor to a relative one."""
    behind_comma = [words_of(part) for part in sentence.split(",")[1:]]
    if any(words and words[0] in VERBS for words in behind_comma):
        return True  # an imperative
    if opener in PREPOSITIONS and any(word in VERBS for words in behind_comma for word in words):
        return True  # a plural
    bare = re.sub(r"\b(?:that|which|who|whose)\b[^,.;:]*", "", " ".join(sentence.split()[2:]))
    in_clause = 1 if opener in CONJUNCTIONS else 0
    return sum(map(is_finite, words_of(bare))) > in_clause


def is_finite(word: str) -> bool:
    """Return whether a word is an auxiliary or a known verb in the third person."""
    return word in AUXILIARIES or bool({word.removesuffix("s"), word.removesuffix("es")} & VERBS - {word})


def words_of(text: str) -> list[str]:
    """Return the words of a text in small letters, without code."""
    return re.findall(r"[a-z][a-z']*", re.sub(r"`[^`]*`", "", text).lower())


def files_of(paths: Iterable[Path]) -> Iterator[Path]:
    """Yield the Python files among and below `paths`, without generated ones."""
    for path in paths:
        below = sorted(path.rglob("*.py")) if path.is_dir() else [path]
        yield from (file for file in below if "_pb2" not in file.name)


def main(
    paths: Annotated[list[Path], typer.Argument(help="Files and folders to read.")],
    most: Annotated[int, typer.Option("--max", min=0, help="How many docstrings may still be no sentences.")] = 0,
) -> None:
    """List the docstrings that are not sentences; exit with 1 if there are more than --max."""
    found = [finding for path in files_of(paths) for finding in findings(path)]
    if len(found) > most:
        for finding in found:
            typer.echo(finding)
        typer.echo(f"{len(found)} docstrings are not sentences, {most} may be")
        raise typer.Exit(1)
    if len(found) < most:
        typer.echo(f"{len(found)} docstrings are not sentences: lower --max in the Makefile from {most}")


if __name__ == "__main__":
    typer.run(main)
