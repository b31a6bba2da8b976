"""List the mutants of the core that no test can notice, each with the reason."""

from __future__ import annotations

EQUIVALENT: dict[str, str] = {
    "cache_service.core.builds.Builds.before_epoch: `build.epoch < epoch` compares with LtE": (
        "when an edit is decided, no build can be of the epoch that it makes"
    ),
    "cache_service.core.contexts._id: `4` becomes 5": "an id may have any length; only its uniqueness counts",
}
