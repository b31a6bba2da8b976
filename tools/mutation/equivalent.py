"""List the mutants of the core that no test can notice, each with the reason."""

from __future__ import annotations

EQUIVALENT: dict[str, str] = {}
