"""Read the fenced blocks of the documentation, and compare what they print with what really comes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

COMMANDS = frozenset({"sh", "python"})
OUTPUTS = frozenset({"json", "text"})
FIGURES = frozenset({"mermaid"})
EXACT = frozenset(
    {
        "completion_tokens",
        "content",
        "epoch",
        "epochs",
        "finish_reason",
        "object",
        "policy",
        "positions",
        "prompt_tokens",
    }
    | {"role", "text", "token_ids", "type", "code", "param", "mode", "model", "current_epoch", "refusal"}
)
"""Keys whose values are the same at every run of an example."""


@dataclass(frozen=True)
class Block:
    """Is one fenced block."""

    page: str
    line: int
    language: str
    text: str

    @property
    def beginning(self) -> str:
        return self.text.partition("\n")[0][:60]

    @property
    def is_stream(self) -> bool:
        return self.text.startswith("data: ")

    @property
    def is_output(self) -> bool:
        """Return whether this shows what a command before it prints."""
        return self.language in OUTPUTS or self.is_stream

    def __str__(self) -> str:
        return f"{self.page}:{self.line} ({self.language})"


def blocks_of(page: Path) -> Iterator[Block]:
    """Yield the page's fenced blocks in order."""
    content = page.read_text()
    for match in FENCE.finditer(content):
        line = content.count("\n", 0, match.start()) + 1
        yield Block(page.relative_to(ROOT).as_posix(), line, match[1], match[2])


def all_blocks() -> list[Block]:
    return [block for page in PAGES for block in blocks_of(page)]


def differences(shown: Any, real: Any, path: str = "", *, partial: bool = False) -> Iterator[str]:
    """Yield where the `real` JSON value has other keys or types than the one that a page shows, or other exact values.

    A shown null stands for any value. If the page leaves keys out (`partial`), the real value may have more of them.
    """
    key = path.rpartition(".")[2]
    if isinstance(shown, dict) and isinstance(real, dict):
        missing, extra = shown.keys() - real.keys(), real.keys() - shown.keys()
        if missing or (extra and not partial):
            yield f"{path}: shown but absent {sorted(missing)}, present but not shown {sorted(extra)}"
        for name in shown.keys() & real.keys():
            yield from differences(shown[name], real[name], f"{path}.{name}", partial=partial)
    elif isinstance(shown, list) and isinstance(real, list):
        if key in EXACT and shown != real:
            yield f"{path}: {shown!r} is shown, {real!r} came"
        elif len(shown) != len(real):
            yield f"{path}: {len(shown)} items are shown, {len(real)} came"
        for one, other in zip(shown, real, strict=False):
            yield from differences(one, other, path, partial=partial)
    elif None not in (shown, real):
        is_other = key in EXACT and shown != real and "..." not in str(shown)
        if is_other or type(shown) is not type(real):
            yield f"{path}: {shown!r} is shown, {real!r} came"


def events_of(text: str) -> list[Any]:
    """Return the data of server-sent events; a page may leave out keys by `...`."""
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(without_ellipses(line)) for line in lines]


def without_ellipses(line: str) -> str:
    """Return JSON in which `...` stood for keys that were left out, outside of strings."""
    line = re.sub(r"(?<=[{,] )\.\.\., |, \.\.\.(?=[}\]])", "", line)
    return line.replace("{...}", "{}")


def stream_differences(shown: str, real: str) -> Iterator[str]:
    """Yield the differences of two streams, event by event."""
    ours, theirs = events_of(shown), events_of(real)
    if len(ours) != len(theirs):
        yield f"{len(ours)} events are shown, {len(theirs)} came"
    for number, (one, other) in enumerate(zip(ours, theirs, strict=False)):
        yield from differences(one, other, f"event {number}", partial="..." in shown)
