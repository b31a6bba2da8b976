"""Format the log lines of every process, as text or as JSON, and set the least level that is shown."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass
from typing import Any, Literal

LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR"]
LogFormat = Literal["text", "json"]

FIELDS = "fields"
"""Attribute of a record that holds values with names, which become keys of their own in JSON."""
OURS = ("protos", "cache_service", "workers", "cluster", "palimpsest")
"""Loggers to which the level applies; other libraries are shown from WARNING on."""
TEXT = "%(asctime)s %(levelname)-7s [%(process)d] %(name)s: %(message)s"


@dataclass(frozen=True)
class LogsConfig:
    """Says what is logged, and how."""

    level: LogLevel = "INFO"
    """The least level that is shown; at DEBUG, Ray's own lines and those of health checks are, too."""
    format: LogFormat = "text"
    """Form of a line: text, or json with one object a line."""
    access: bool = True
    """Log one line for each request, at level INFO: never its text, and of its API key only a hash."""


class JsonFormatter(logging.Formatter):
    """Formats a record as one JSON object on one line."""

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "process": record.process,
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, FIELDS, {}),
        }
        if record.exc_info:
            line["stack"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure_logs(config: LogsConfig) -> None:
    """Make this process log to stderr as `config` says, in place of what was configured before."""
    handler = logging.StreamHandler()
    handler.setFormatter(formatter_of(config))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for name in OURS:
        logging.getLogger(name).setLevel(config.level)


def formatter_of(config: LogsConfig) -> logging.Formatter:
    return JsonFormatter() if config.format == "json" else logging.Formatter(TEXT)
