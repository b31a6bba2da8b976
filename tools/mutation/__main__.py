"""Run a seeded sample of mutants against the tests, and report those that no test notices.

`python -m tools.mutation [--seed N] [--sample N] [--results FILE]` continues where an earlier run with the same file
stopped: a mutant is run again only if its module has changed since, or if it survived.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import importlib.abc
import importlib.machinery
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import CodeType, ModuleType

from tools.mutation.equivalent import EQUIVALENT
from tools.mutation.mutants import Mutant, mutants_of, mutated

ROOT = Path(__file__).resolve().parents[2]
CORE = ROOT / "cache_service" / "core"
LIBRARIES = ("grpc.aio", "hypothesis.stateful", "prometheus_client", "redis.asyncio", "yaml")
"""Modules that every fork would load: the parent loads them once. None of them starts a thread when it is loaded."""
QUICK = ("bounds", "directory", "contexts", "refresh", "mirror", "cursor", "leases", "batching", "convert")
"""Unit tests of pure code, which find most mutants within a second."""
LATER = (
    "tests/unit/cache_service/test_invariants.py",
    "tests/faults/test_simulation.py",
    "tests/contract/test_store.py",
    "tests/contract/test_service.py",
)
UNRELATED = ("process", "heap", "metrics", "config", "background", "history", "watch_checker")
"""Unit tests that start processes, which don't see the mutant, or that aren't about the core."""
SELECTION = "not redis and not planted and not no_invariant"
"""Tests of the memory store, and one short simulation."""
NUM_PROCESSES = 2
TIMEOUT_S = 180.0
INTERNAL_ERROR = 70


class MutantFinder(importlib.abc.MetaPathFinder):
    """Finds one module, whose code is compiled from a changed tree."""

    def __init__(self, mutant: Mutant) -> None:
        self._mutant = mutant

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self._mutant.module:
            return None
        loader = MutantLoader(fullname, str(path_of(self._mutant.module)), self._mutant.index)
        return importlib.machinery.ModuleSpec(fullname, loader, origin=loader.path)


class MutantLoader(importlib.machinery.SourceFileLoader):
    def __init__(self, fullname: str, path: str, index: int) -> None:
        super().__init__(fullname, path)
        self._index = index

    def get_code(self, fullname: str) -> CodeType:
        return compile(mutated(Path(self.path).read_text(), self._index), self.path, "exec")


def path_of(module: str) -> Path:
    return ROOT / Path(*module.split(".")).with_suffix(".py")


def all_mutants() -> Iterator[Mutant]:
    for path in sorted(CORE.glob("*.py")):
        yield from mutants_of(f"cache_service.core.{path.stem}", path.read_text())


def stages() -> Iterator[list[str]]:
    """Yield the files of tests in the order in which they run, fast ones first."""
    unit = sorted((ROOT / "tests/unit/cache_service").glob("test_*.py"))
    quick = [path for path in unit if path.stem.removeprefix("test_") in QUICK]
    later = [ROOT / path for path in LATER]
    others = [path for path in unit if path.stem.removeprefix("test_") not in UNRELATED and path not in quick + later]
    for files in (quick, later[:2], others, later[2:]):
        yield list(map(str, files))


def run_tests(mutant: Mutant | None, log: Path) -> int:
    """Run the tests in this process, and return their status."""
    import pytest

    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    if mutant is not None:
        sys.meta_path.insert(0, MutantFinder(mutant))
    options = ["-x", "-q", "--no-header", "--tb=line", "-p", "no:cacheprovider", "--hypothesis-seed=0"]
    options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # pytest finds libraries loaded that it rewrites
    for files in stages():
        if status := pytest.main([*options, "-k", SELECTION, *files]):
            return int(status)
    return 0


def fork_tests(mutant: Mutant | None, logs: Path) -> int:
    """Run the tests in a fork, and return its process id; its log is named by it."""
    if pid := os.fork():
        return pid
    status = INTERNAL_ERROR
    try:
        status = run_tests(mutant, logs / f"{os.getpid()}.log")
    finally:
        os._exit(status)


def require_passing(logs: Path) -> None:
    """Exit with the log unless the tests pass without a mutant."""
    pid = fork_tests(None, logs)
    _, status = os.waitpid(pid, 0)
    if status != 0:
        sys.exit("the tests fail without any mutant:\n" + (logs / f"{pid}.log").read_text())


class Runner:
    """Runs mutants in forks of this process, a few at a time, and keeps their outcomes in a file."""

    def __init__(self, results: Path, logs: Path) -> None:
        self._results, self._logs = results, logs
        self._running: dict[int, tuple[Mutant, float]] = {}
        lines = results.read_text().splitlines() if results.exists() else []
        self.outcomes: dict[str, dict[str, str | float]] = {
            record["mutant"]: record
            for record in map(json.loads, lines)
            if record["source"] == digest_of(record) and record["outcome"] in ("killed", "timeout")
        }

    def run(self, mutants: Sequence[Mutant]) -> None:
        for mutant in mutants:
            if mutant.name not in self.outcomes:
                while len(self._running) >= NUM_PROCESSES:
                    self._wait()
                self._start(mutant)
        while self._running:
            self._wait()

    def _start(self, mutant: Mutant) -> None:
        pid = fork_tests(mutant, self._logs)
        self._running[pid] = mutant, time.monotonic()

    def _wait(self) -> None:
        """Wait until a mutant has ended, or has taken too long, and record its outcome."""
        for pid, (mutant, started) in tuple(self._running.items()):
            took_s = time.monotonic() - started
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                self._record(pid, mutant, outcome_of(os.waitstatus_to_exitcode(status)), took_s)
            elif took_s > TIMEOUT_S:
                os.killpg(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                self._record(pid, mutant, "timeout", took_s)
        time.sleep(0.05)

    def _record(self, pid: int, mutant: Mutant, outcome: str, took_s: float) -> None:
        del self._running[pid]
        log = self._log_of(pid)
        text = log.read_text(errors="replace") if log.exists() else ""
        test = next((line.split(" ")[1] for line in text.splitlines() if line.startswith(("FAILED", "ERROR "))), "")
        record: dict[str, str | float] = {"mutant": mutant.name, "module": mutant.module}
        record |= {"outcome": outcome, "by": test.rpartition("/")[2], "seconds": round(took_s, 1)}
        record["source"] = digest_of(record)
        self.outcomes[mutant.name] = record
        with self._results.open("a") as results:
            results.write(json.dumps(record) + "\n")
        sys.stdout.write(f"{outcome:9}{took_s:6.1f} s  {mutant.name}\n")
        sys.stdout.flush()

    def _log_of(self, pid: int) -> Path:
        return self._logs / f"{pid}.log"


def digest_of(record: dict[str, str | float]) -> str:
    """Return a digest of the module's present source."""
    return hashlib.sha256(path_of(str(record["module"])).read_bytes()).hexdigest()[:16]


def outcome_of(status: int) -> str:
    """Return what a status of pytest means: 1 is a failed test, 2 a module that can't even be loaded."""
    return "survived" if status == 0 else "killed" if status in (1, 2) else f"error {status}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--sample", type=int, default=300)
    parser.add_argument("--results", type=Path, default=ROOT / "build" / "mutation.jsonl")
    given = parser.parse_args()
    given.results.parent.mkdir(parents=True, exist_ok=True)
    for library in LIBRARIES:
        importlib.import_module(library)
    everything = list(all_mutants())
    sample = random.Random(given.seed).sample(everything, min(given.sample, len(everything)))
    judged = [mutant for mutant in sample if mutant.name not in EQUIVALENT]
    with tempfile.TemporaryDirectory() as directory:
        os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = directory
        require_passing(Path(directory))
        runner = Runner(given.results, Path(directory))
        runner.run(judged)
    counts = Counter(str(runner.outcomes[mutant.name]["outcome"]) for mutant in judged)
    killed = counts["killed"] + counts["timeout"]
    lines = [f"{len(everything)} mutants, {len(sample)} of them in the sample, {len(sample) - len(judged)} equivalent"]
    lines += [f"survived: {mutant.name}" for mutant in judged if runner.outcomes[mutant.name]["outcome"] == "survived"]
    lines += [f"{killed} of {len(judged)} killed: {killed / len(judged):.1%} ({dict(counts)})"]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
