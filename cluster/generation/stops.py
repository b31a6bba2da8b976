"""Find stop strings in streamed text. Pure."""

from __future__ import annotations

from collections.abc import Sequence

MAX_STOPS, MAX_STOP_LENGTH = 16, 256


class StopStrings:
    """Cuts streamed text at the first stop string.

    A possible beginning of a stop string is held back, so that the result doesn't depend on how the text was split.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        """Stop at any of `stops`, none of which is empty."""
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """Add `text`; return the text that can't be part of a stop string, or nothing once one was found."""
        if self.stopped:
            return ""
        self._held += text
        found = [(at + len(stop), at) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            _end, start = min(found)
            return self._release(start)
        return self._release(len(self._held) - self._longest_beginning())

    def finish(self) -> str:
        """Return the text that was held back, once no more text follows."""
        return "" if self.stopped else self._release(len(self._held))

    def _release(self, length: int) -> str:
        text, self._held = self._held[:length], self._held[length:]
        return text

    def _longest_beginning(self) -> int:
        """Return the length of the longest suffix of the held text that is a prefix of a stop string."""
        lengths = (n for stop in self._stops for n in range(1, len(stop)) if self._held.endswith(stop[:n]))
        return max(lengths, default=0)
