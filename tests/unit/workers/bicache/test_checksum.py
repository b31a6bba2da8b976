from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from workers.bicache import checksum as module
from workers.bicache.checksum import checksum

CONTENT = st.binary(min_size=1, max_size=200)


def bytes_of(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else torch.empty(0, dtype=torch.uint8)


@given(CONTENT, st.data())
def test_a_changed_bit_is_found(content: bytes, data: st.DataObject) -> None:
    at, bit = data.draw(st.integers(0, len(content) - 1)), data.draw(st.integers(0, 7))
    changed = bytes_of(content)
    changed[at] ^= 1 << bit
    assert checksum(changed) != checksum(bytes_of(content))


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=2, max_size=20), st.data())
def test_a_changed_order_is_found(words: list[int], data: st.DataObject) -> None:
    other = data.draw(st.permutations(words))
    equal = other == words
    assert (checksum(tensor(words)) == checksum(tensor(other))) is equal


def tensor(words: list[int]) -> Tensor:
    return torch.tensor(words, dtype=torch.int64).view(torch.uint8)


@given(CONTENT, st.integers(1, 40))
def test_missing_or_added_zeros_are_found(content: bytes, number: int) -> None:
    assert checksum(bytes_of(content + bytes(number))) != checksum(bytes_of(content))


def test_an_empty_body_has_a_checksum() -> None:
    assert checksum(bytes_of(b"")) == 0


@pytest.mark.parametrize("size", [1, 7, 64])
def test_the_checksum_does_not_depend_on_the_size_of_chunks(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    body = torch.arange(1000, dtype=torch.int64).view(torch.uint8)[:-3]
    whole = checksum(body)
    monkeypatch.setattr(module, "CHUNK_WORDS", size)
    assert checksum(body) == whole
