"""Short texts are encoded on the loop, long ones on a thread."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from cluster.generation.encoding import LONG_TEXT_LENGTH, TextEncoder
from cluster.generation.tokenization import (
    Conversation,
    Message,
    Prompt,
    TextPrompt,
    Tokenizer,
    TokenPrompt,
    length_of,
)


@pytest.fixture
def encoder(random_model: Path) -> TextEncoder:
    return TextEncoder(random_model)


def thread_of(tokenizer: Tokenizer) -> tuple[int, Tokenizer]:
    return threading.get_ident(), tokenizer


async def test_a_long_text_has_a_thread_and_a_tokenizer_of_its_own(encoder: TextEncoder) -> None:
    assert await encoder.run(LONG_TEXT_LENGTH - 1, thread_of) == (threading.get_ident(), encoder.tokenizer)
    thread, tokenizer = await encoder.run(LONG_TEXT_LENGTH, thread_of)
    assert thread != threading.get_ident()
    assert tokenizer is not encoder.tokenizer


async def test_the_loop_runs_while_a_long_text_is_encoded(encoder: TextEncoder) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def work(tokenizer: Tokenizer) -> tuple[int, ...]:
        begun.set()
        go_on.wait()
        return tokenizer.encode_plain("Mira is 34.")

    long = asyncio.create_task(encoder.run(LONG_TEXT_LENGTH, work))
    await asyncio.to_thread(begun.wait)
    short = await encoder.run(11, lambda tokenizer: tokenizer.encode_plain("Mira is 34."))
    assert not long.done()
    go_on.set()
    assert await long == short


@pytest.mark.parametrize(
    "prompt",
    [
        Conversation((Message("system", "abc"), Message("user", "de"))),
        TextPrompt("abcde"),
        TokenPrompt((1, 2, 3, 4, 5)),
    ],
)
def test_the_length_of_a_prompt_counts_what_is_encoded(prompt: Prompt) -> None:
    assert length_of(prompt) == 5
