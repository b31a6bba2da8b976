"""Several runs can make one report together; each measures a part of it.

Each row names its part, and each part has its own ceilings, commit and command. Bars compare rows of one part alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.report import Row, origin

IDENTITY = ("model", "policy", "prefix", "batch", "prefixes")
"""Columns that identify a measurement. Of these a ceiling has a policy alone."""


class PartsError(ValueError):
    """Signals a report that can't be continued."""


def identity(row: Row) -> tuple[Any, ...]:
    return tuple(row.get(column) for column in IDENTITY)


def is_ceiling(row: Row) -> bool:
    return "ceiling" in row


@dataclass(frozen=True)
class Parts:
    """Holds the earlier parts of a report, and numbers the one that is measured now."""

    device: str
    earlier: tuple[Mapping[str, Any], ...] = ()
    """Number, device, versions, commit and command of each part."""
    rows: tuple[Row, ...] = ()

    @classmethod
    def read(cls, path: Path, device: str) -> Parts:
        """Read the parts in `path`, or none where the file doesn't exist. Raises PartsError."""
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
        """Return True if an earlier part lacks one of these rows."""
        return not {identity(row) for row in wanted} <= {identity(row) for row in self.rows}

    def join(self, measured: Sequence[Row]) -> list[Row]:
        """Return all rows, each once; new ones replace old ones, and a part without any row loses its ceilings."""
        replaced = {identity(row) for row in measured}
        kept = [row for row in self.rows if is_ceiling(row) or identity(row) not in replaced]
        kept_parts = {row["part"] for row in kept if not is_ceiling(row)}
        new = [{**row, "part": self.number} for row in measured]
        return [*(row for row in kept if row["part"] in kept_parts), *new]

    def origins(self, rows: Sequence[Row]) -> list[Mapping[str, Any]]:
        """Return the origins of the parts to which `rows` belong."""
        kept_parts = {row["part"] for row in rows}
        origins = [*self.earlier, {"part": self.number, **origin(self.device)}]
        return [one for one in origins if one["part"] in kept_parts]
