"""Define the handle that keeps a prefix entry alive while it is read. Pure."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

from workers.bicache.entry import PrefixEntry


class PrefixHandle:
    """Holds an entry for a reader, until `release` or the end of a `with`."""

    def __init__(self, entry: PrefixEntry, on_release: Callable[[PrefixEntry], None]) -> None:
        self.entry = entry
        self._on_release = on_release
        self._is_held = True

    def __enter__(self) -> PrefixHandle:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.release()

    def release(self) -> None:
        """End the hold. A second call changes nothing."""
        if self._is_held:
            self._is_held = False
            self._on_release(self.entry)
