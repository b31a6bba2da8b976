"""A report holds what a benchmark prints and writes: rows, bars computed from them, and where they were measured."""

from __future__ import annotations

import json
import operator
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parent.parent
PACKAGES = ("torch", "ray", "transformers", "grpcio", "redis", "triton")
COMPARISONS: Mapping[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
    "==": operator.eq,
}

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Bar:
    """A bar is a bound that a figure must keep."""

    name: str
    value: float
    op: str
    bound: float

    @property
    def holds(self) -> bool:
        return COMPARISONS[self.op](self.value, self.bound)


@dataclass(frozen=True)
class Report:
    benchmark: str
    rows: Sequence[Row]
    bars: Sequence[Bar]
    device: str
    parts: Sequence[Mapping[str, Any]] = ()
    """Origins of the parts, in a report that several runs made."""

    def print(self) -> None:
        console = Console(width=None if sys.stdout.isatty() else 200)
        console.print(table(self.benchmark, self.rows))
        if self.bars:
            console.print(table("bars", [{**asdict(bar), "holds": bar.holds} for bar in self.bars]))

    def write(self, path: Path) -> None:
        """Write JSON with all that a reader needs to measure it again; of several runs it describes the last."""
        content = {
            "benchmark": self.benchmark,
            **origin(self.device),
            **({"parts": list(self.parts)} if self.parts else {}),
            "rows": list(self.rows),
            "bars": [{**asdict(bar), "holds": bar.holds} for bar in self.bars],
        }
        new = path.with_name(f"{path.name}.new")  # a run that ends here leaves the last report intact
        new.write_text(json.dumps(content, indent=1) + "\n")
        new.replace(path)


def table(title: str, rows: Sequence[Row]) -> Table:
    result = Table(title=title)
    columns = list(dict.fromkeys(column for row in rows for column in row))
    for column in columns:
        numeric = all(isinstance(row.get(column, 0), int | float) for row in rows)
        result.add_column(column, justify="right" if numeric else "left")
    for row in rows:
        result.add_row(*(cell(row.get(column, "")) for column in columns))
    return result


def cell(value: Any) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


def origin(device: str) -> dict[str, Any]:
    """Return where this process measures: the machine, the versions, the commit, and the command."""
    return {"device": device, "versions": versions(), "commit": commit(), "command": command()}


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """Return HEAD, marked `+changes` where the working tree, apart from results, differs from it.

    Without a checkout it is "unknown". PALIMPSEST_COMMIT names the commit of a tree that comes without its history.
    """
    if named := os.environ.get("PALIMPSEST_COMMIT"):
        return named
    try:
        head = git("rev-parse", "--short=12", "HEAD")
        changes = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results")
        return head + ("+changes" if changes else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def command() -> str:
    """Return this process's command line, without absolute paths."""
    script, *arguments = sys.argv
    module = getattr(sys.modules["__main__"].__spec__, "name", None)
    start = ["python", "-m", module] if module else ["python", without_directory(script)]
    return shlex.join([*start, *map(without_directory, arguments)])


def without_directory(argument: str) -> str:
    """Return `argument` with an absolute path written from the project's root, or as its last component elsewhere.

    The path may be the whole argument or the value in `--option=value`.
    """
    option, equals, value = argument.partition("=") if argument.startswith("-") else ("", "", argument)
    path = Path(os.path.normpath(value))
    if not path.is_absolute():
        return argument
    return f"{option}{equals}{path.relative_to(ROOT) if path.is_relative_to(ROOT) else path.name}"


def cpu_name() -> str:
    """Return the processor as the system names it, with the number of cores that this process may use."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    return f"{name}, {len(os.sched_getaffinity(0))} cores"
