"""Finds the models that ship with the package, by name; any other name is a directory."""

from __future__ import annotations

from pathlib import Path

from workers.errors import UnsupportedModelError

CHECKPOINTS = Path(__file__).parent / "factbook" / "checkpoints"


def bundled_models() -> list[str]:
    return sorted(path.parent.name for path in CHECKPOINTS.glob("*/config.json"))


def model_directory(name: str) -> Path:
    """Return the directory of the bundled model `name`, else the path `name`. Raises UnsupportedModelError."""
    for directory in (CHECKPOINTS / name, Path(name).expanduser()):
        if (directory / "config.json").exists():
            return directory.resolve()
    raise UnsupportedModelError(
        f"model {name!r} is neither bundled ({', '.join(bundled_models())}) nor a directory with a config.json"
    )
