"""Where texts are encoded."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from cluster.generation.encoding import LONG, Encoding
from cluster.generation.tokenization import (
    Conversation,
    Message,
    Prompt,
    TextPrompt,
    Tokenization,
    TokenPrompt,
    length_of,
)


@pytest.fixture
def encoding(random_model: Path) -> Encoding:
    return Encoding(random_model)


def place(tokenization: Tokenization) -> tuple[int, Tokenization]:
    return threading.get_ident(), tokenization


async def test_a_long_text_has_a_thread_and_a_tokenizer_of_its_own(encoding: Encoding) -> None:
    assert await encoding.run(LONG - 1, place) == (threading.get_ident(), encoding.tokenization)
    thread, tokenization = await encoding.run(LONG, place)
    assert thread != threading.get_ident()
    assert tokenization is not encoding.tokenization


async def test_the_loop_goes_on_while_a_long_text_is_encoded(encoding: Encoding) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def work(tokenization: Tokenization) -> tuple[int, ...]:
        begun.set()
        go_on.wait()
        return tokenization.encode_plain("Mira is 34.")

    long = asyncio.create_task(encoding.run(LONG, work))
    await asyncio.to_thread(begun.wait)
    short = await encoding.run(11, lambda tokenization: tokenization.encode_plain("Mira is 34."))
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
def test_the_length_of_a_prompt_is_what_there_is_to_encode(prompt: Prompt) -> None:
    assert length_of(prompt) == 5
