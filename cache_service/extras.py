"""Check, before a command starts, that the parts of the package that it needs are installed."""

from __future__ import annotations

from importlib.util import find_spec

import typer


def require_extra(extra: str, *modules: str) -> None:
    """End the command with a message that names the extra to install, unless all `modules` are installed."""
    if missing := [module for module in modules if not is_installed(module)]:
        message = f"palimpsest: this command needs {', '.join(missing)}: pip install 'palimpsest[{extra}]'"
        typer.secho(message, err=True, fg=typer.colors.RED)
        raise typer.Exit(2)


def is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ImportError:
        return False
