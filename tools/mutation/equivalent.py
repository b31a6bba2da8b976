"""List the mutants of the core that no test can notice, each with the reason."""

from __future__ import annotations

_UNREACHABLE = "mypy proves that no value gets there"

EQUIVALENT: dict[str, str] = {
    "cache_service.core.state.State.apply: `assert_never(change)` is left out": _UNREACHABLE,
    "cache_service.core.state.State._put: `assert_never(fact)` is left out": _UNREACHABLE,
    "cache_service.core.state.State._drop: `assert_never(fact)` is left out": _UNREACHABLE,
    "cache_service.core.facts.ChangeReader.changes_of: `assert_never(event)` is left out": _UNREACHABLE,
    "cache_service.core.builds.Builds.before_epoch: `build.epoch < epoch` compares with LtE": (
        "when an edit is decided, no build can be of the epoch that it makes"
    ),
    "cache_service.core.builds.Builds.before_epoch: `epoch is None or build.epoch < epoch` is left out": (
        "the same: all builds of the context are of earlier epochs then"
    ),
    "cache_service.core.cursor.Cursor.__init__: `Revision | None` computes with BitAnd": (
        "an annotation decides nothing"
    ),
    "cache_service.core.contexts._id: `4` becomes 5": "an id may have any length; only its uniqueness counts",
}
