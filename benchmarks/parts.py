"""A report that several runs make together: what the earlier ones measured, and how a later one joins it.

Each row says which part it is of, and each part has its own ceilings, commit and command. What is compared is compared
within one part.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.report import Row, origin

IDENTITY = ("model", "policy", "prefix", "batch", "prefixes")
"""What tells a measurement from others. A ceiling has a policy alone."""


class PartsError(ValueError):
    """A report that can't be gone on with."""


def identity(row: Row) -> tuple[Any, ...]:
    return tuple(row.get(column) for column in IDENTITY)


def is_ceiling(row: Row) -> bool:
    return "ceiling" in row


@dataclass(frozen=True)
class Parts:
    """The earlier parts of a report, and the number of the one that is measured now."""

    device: str
    earlier: tuple[Mapping[str, Any], ...] = ()
    """{"part", "device", "versions", "commit", "command"} of each."""
    rows: tuple[Row, ...] = ()

    @classmethod
    def read(cls, path: Path, device: str) -> Parts:
        """What is in `path`; nothing where there is no such file. Raises PartsError."""
        if not path.exists():
            return cls(device)
        content = json.loads(path.read_text())
        if any("part" not in row for row in content["rows"]) or "parts" not in content:
            raise PartsError(f"{path} wasn't written in parts; name a new file")
        if content["device"] != device:
            raise PartsError(f"{path} was measured on {content['device']}, this is {device}; name a new file")
        return cls(device, tuple(content["parts"]), tuple(content["rows"]))

    @property
    def number(self) -> int:
        return max((part["part"] for part in self.earlier), default=0) + 1

    def lacks(self, wanted: Iterable[Row]) -> bool:
        """Whether one of these was not measured yet."""
        return not {identity(row) for row in wanted} <= {identity(row) for row in self.rows}

    def joined(self, measured: Sequence[Row]) -> list[Row]:
        """All rows, each once: what is measured anew replaces what was. A part without any row loses its ceilings."""
        anew = {identity(row) for row in measured}
        kept = [row for row in self.rows if is_ceiling(row) or identity(row) not in anew]
        alive = {row["part"] for row in kept if not is_ceiling(row)}
        new = [{**row, "part": self.number} for row in measured]
        return [*(row for row in kept if row["part"] in alive), *new]

    def origins(self, rows: Sequence[Row]) -> list[Mapping[str, Any]]:
        """Of those parts that `rows` are of."""
        alive = {row["part"] for row in rows}
        known = [*self.earlier, {"part": self.number, **origin(self.device)}]
        return [part for part in known if part["part"] in alive]
