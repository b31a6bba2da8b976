"""Define the command line: `palimpsest serve` and `palimpsest profile`."""

from __future__ import annotations

import enum
import os
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer

from cache_service.extras import require_extra
from cache_service.logs import configure_logs
from cluster.errors import ClusterError

SERVE_MODULES = ("cattrs", "fastapi", "psutil", "ray", "sse_starlette", "torch", "transformers", "yaml")
"""Modules that the extra `serve` brings, and that its commands or their processes import."""

app = typer.Typer(
    no_args_is_help=True, pretty_exceptions_enable=False, help="Serve diffusion language models from a Ray cluster."
)


class LogLevel(enum.Enum):
    """Lists the log levels."""

    DEBUG = "DEBUG"
    INFO = "INFO"
    WARNING = "WARNING"
    ERROR = "ERROR"


class LogFormat(enum.Enum):
    """Names the forms of a log line."""

    TEXT = "text"
    JSON = "json"


def show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"palimpsest {version('palimpsest')}")
        raise typer.Exit


@app.callback()
def options(
    _version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show the version and leave.")
    ] = False,
) -> None:
    """Read the options that come before the command."""


@app.command()
def serve(
    model: Annotated[
        str | None, typer.Option(help="A bundled model's name, or a directory in Hugging Face's layout.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML file; see deploy/palimpsest.yaml. Options given here go before it.")
    ] = None,
    replicas: Annotated[
        int | None, typer.Option(min=1, show_default="one a GPU, else 2", help="Worker replicas.")
    ] = None,
    host: Annotated[str | None, typer.Option(show_default="127.0.0.1", help="Address of both servers.")] = None,
    http_port: Annotated[int | None, typer.Option(show_default="8000", help="Port of the HTTP server.")] = None,
    grpc_port: Annotated[int | None, typer.Option(show_default="9000", help="Port of the gRPC server.")] = None,
    cache_port: Annotated[int | None, typer.Option(show_default="7070", help="Port of the cache service.")] = None,
    log_level: Annotated[
        LogLevel | None, typer.Option(case_sensitive=False, show_default="INFO", help="The least that is logged.")
    ] = None,
    log_format: Annotated[
        LogFormat | None, typer.Option(case_sensitive=False, show_default="text", help="Form of a log line.")
    ] = None,
) -> None:
    """Start the whole system on this machine: cache service, Ray, router, workers. Ctrl-C ends all of it."""
    require_extra("serve", *SERVE_MODULES)
    from cluster.config_file import default_max_tokens, load_config, resolve_model_directory
    from cluster.supervisor import supervisor

    given: dict[str, Any] = {
        "model": model,
        "replicas": replicas,
        "http": {"host": host, "port": http_port},
        "grpc": {"host": host, "port": grpc_port},
        "cache_service": {"port": cache_port},
        "logs": {"level": log_level and log_level.value, "format": log_format and log_format.value},
    }
    try:
        located_config = resolve_model_directory(load_config(config, drop_none(given)))
        located_config.api_keys.read(os.environ)
        default_max_tokens(located_config)
        configure_logs(located_config.logs)
        code = supervisor.run(located_config, os.environ)
    except ClusterError as error:
        typer.secho(f"palimpsest: {error}", err=True, fg=typer.colors.RED)
        raise typer.Exit(2) from error
    raise typer.Exit(code)


@app.command()
def profile(
    model: Annotated[str, typer.Argument(help="A bundled model's name, or a directory in Hugging Face's layout.")],
    prompts: Annotated[
        Path, typer.Option(exists=True, dir_okay=False, help='JSON lines: {"messages": [{"role", "content"}]}.')
    ],
    output: Annotated[
        Path | None, typer.Option(file_okay=False, show_default="beside the weights", help="Where to write.")
    ] = None,
    canvas: Annotated[
        int, typer.Option(min=1, help="Canvas tokens behind every prompt; they count in the ratio.")
    ] = 256,
    agreement: Annotated[
        float, typer.Option(min=0, max=1, help="Share of committed tokens that reuse must leave alone.")
    ] = 0.97,
) -> None:
    """Measure how deep the model's prefixes can be reused: depth_table.json, and a heat map of it."""
    require_extra("serve", *SERVE_MODULES)
    from rich.console import Console

    from cluster.profiling import PromptFileError, conversation_samples, output_directory
    from workers.bicache.profile import ProfileConfig
    from workers.bicache.profile.report import profile_directory
    from workers.errors import WorkerError
    from workers.models.bundle import model_directory

    try:
        directory = model_directory(model)
        samples = list(conversation_samples(prompts, directory, canvas))
        if not samples:
            raise PromptFileError(f"no conversation in {prompts} has turns before its last user turn to be reused")
        written = output_directory(output or directory)
        config = ProfileConfig(agreement=agreement)
        profile_directory(directory, samples, written, config=config, console=Console())
    except (ClusterError, WorkerError) as error:
        typer.secho(f"palimpsest: {error}", err=True, fg=typer.colors.RED)
        raise typer.Exit(2) from error


def drop_none(options: dict[str, Any]) -> dict[str, Any]:
    """Return nested options without those that are None."""
    nested = {name: drop_none(value) if isinstance(value, dict) else value for name, value in options.items()}
    return {name: value for name, value in nested.items() if value is not None and value != {}}


if __name__ == "__main__":
    app()
