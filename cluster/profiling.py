"""Read a file of conversations as profile samples, rendered by the model's own chat template."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cluster.errors import ClusterError
from cluster.generation.tokenization import Conversation, Message, Tokenizer
from workers.bicache.cut import cut_length
from workers.bicache.profile import ProfileSample
from workers.config import BiCacheConfig


class PromptFileError(ClusterError):
    """A line of the file isn't a conversation."""


class OutputError(ClusterError):
    """The directory for the table can't be written to."""


def conversation_samples(path: Path, directory: Path, canvas: int) -> Iterator[ProfileSample]:
    """Yield each line's conversation, cut where the server cuts it, with a canvas of `canvas` tokens after it.

    A line is a JSON object with `messages`, a list of objects with `role` and `content`, as chat clients send them;
    turns after the last user turn are left out. Raises PromptFileError with the line's number.
    """
    tokenizer = Tokenizer(directory)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise PromptFileError(f"{path} can't be read: {error}") from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            prompt = tokenizer.encode(Conversation(messages_of(line, f"{path}, line {number}")))
            if prompt.boundaries:
                cut = cut_length(prompt.boundaries, BiCacheConfig.cut_share)
                yield ProfileSample(prompt.token_ids, cut, canvas, has_later_turns=cut < prompt.boundaries[-1])


def output_directory(path: Path) -> Path:
    """Create the directory `path` if it is missing, and return it. Raises OutputError if it can't be written to."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{error}; choose another directory with --output") from error
    if not os.access(path, os.W_OK):
        raise OutputError(f"{path} can't be written to; choose another directory with --output")
    return path


def messages_of(line: str, place: str) -> tuple[Message, ...]:
    try:
        turns: list[dict[str, Any]] = json.loads(line)["messages"]
        messages = [Message(str(turn["role"]), str(turn["content"])) for turn in turns]
        for message in messages:
            message.content.encode()  # JSON can spell half a character, which no text holds
        last = max(index for index, message in enumerate(messages) if message.role == "user")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise PromptFileError(
            f'{place}: expected {{"messages": [{{"role": ..., "content": ...}}]}} with a user turn: {error!r}'
        ) from error
    return tuple(messages[: last + 1])
