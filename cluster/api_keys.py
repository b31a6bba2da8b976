"""Read the accepted API keys. They are never in the configuration itself, which is printed and committed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cluster.errors import ConfigError


@dataclass(frozen=True)
class ApiKeysConfig:
    """Configures the sources of accepted API keys; without a source, no key is required."""

    env: str | None = None
    """Environment variable that holds keys, separated by commas."""
    file: Path | None = None
    """A file with one key a line."""

    @property
    def required(self) -> bool:
        return self.env is not None or self.file is not None

    def read(self, environ: Mapping[str, str]) -> frozenset[str]:
        """Return the configured keys. Raises ConfigError if a named source is missing or empty."""
        keys: set[str] = set()
        if self.env is not None:
            keys |= parse_keys(environ.get(self.env, "").split(","), f"api_keys.env: variable {self.env}")
        if self.file is not None:
            try:
                lines = self.file.read_text().splitlines()
            except OSError as error:
                raise ConfigError(f"api_keys.file: {error}") from error
            keys |= parse_keys(lines, f"api_keys.file: {self.file}")
        return frozenset(keys)


def parse_keys(texts: Iterable[str], source: str) -> set[str]:
    keys = {key for text in texts if (key := text.strip())}
    if not keys:
        raise ConfigError(f"{source} holds no API key; set it, or remove it from the configuration")
    return keys
