"""Conversation files as profile samples: the prompts that a deployment sees, through its own chat template."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cluster.errors import ClusterError
from cluster.tokenization import Conversation, Message, Tokenization
from workers.bicache.profile import ProfileSample


class PromptFileError(ClusterError):
    """A line of the file is no conversation."""


def conversation_samples(path: Path, directory: Path, canvas: int) -> Iterator[ProfileSample]:
    """Each line's conversation, cut before its last user turn, with a canvas of `canvas` tokens behind it.

    A line is a JSON object with `messages`, a list of objects with `role` and `content`, as chat clients send them;
    turns behind the last user turn are left out. Raises PromptFileError with the line's number.
    """
    tokenization = Tokenization(directory)
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if line.strip():
            prompt = tokenization.encode(Conversation(messages_of(line, f"{path}, line {number}")))
            if prompt.boundaries:
                yield ProfileSample(prompt.token_ids, prompt.boundaries[-1], canvas)


def messages_of(line: str, place: str) -> tuple[Message, ...]:
    try:
        turns: list[dict[str, Any]] = json.loads(line)["messages"]
        messages = [Message(str(turn["role"]), str(turn["content"])) for turn in turns]
        last = max(index for index, message in enumerate(messages) if message.role == "user")
    except (ValueError, KeyError, TypeError) as error:
        raise PromptFileError(
            f'{place}: expected {{"messages": [{{"role": ..., "content": ...}}]}} with a user turn: {error!r}'
        ) from error
    return tuple(messages[: last + 1])
