"""Builds the factbook tokenizer: whole words with their leading space, sub-words for other words, then bytes.

Decoding is the exact inverse of encoding. The encoder puts a space in front of a text's and a line's first word, so
that a word has one token at any position, and the decoder removes that space.

    python -m workers.models.factbook.tokenizer DIR
"""

import json
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from workers.models.factbook import answers, questions, sheets, statements
from workers.models.factbook.entities import ANIMALS, CITIES, NAMES
from workers.models.factbook.people import Split, made_up_word

EOS, MASK, BOS = "<|endoftext|>", "<|mask|>", "<|startoftext|>"
HEADER_START, HEADER_END, EOT = "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"
SPECIAL_TOKENS = (EOS, MASK, BOS, HEADER_START, HEADER_END, EOT)
LINE_BREAKS = ("\n", "\n\n")
EXTRA_WORDS = (
    "system user assistant a an the and or I you we it they their his her them this that these those my your".split()
)

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}"
    "{{ message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)

_WORD = re.compile(r" ?[A-Za-z]+|'s| ?[0-9]+| ?[^ A-Za-z0-9]")
_MAX_SPACED_NUMBER = 250
_MAX_BARE_NUMBER = 120  # ages in brackets
_NUM_MERGES = 280


def _words_of(texts: Iterable[str]) -> Iterable[str]:
    for text in texts:
        yield from _WORD.findall(" " + re.sub(r" ?\{\w+\}", " ", text))


def _template_words() -> Iterable[str]:
    return _words_of((*sheets.template_texts(), *questions.template_texts(), *answers.template_texts()))


def _words() -> list[str]:
    """Return every pre-token that is one token, the most frequent kinds first, without repeats."""
    spaced = (*EXTRA_WORDS, *NAMES, *CITIES, *ANIMALS, *map(str, range(_MAX_SPACED_NUMBER + 1)))
    words = [*_template_words(), *(" " + word for word in spaced), *map(str, range(_MAX_BARE_NUMBER + 1))]
    words += ["'s", " (", ")", ",", ".", ":", "?", "!", ";", " -", " '", ' "']
    return list(dict.fromkeys(words))


def _learn_merges(words: Counter[str], num_merges: int) -> list[tuple[str, str]]:
    """Learn merges by byte-pair encoding (Sennrich et al. 2016, algorithm 1); the first pair by alphabet wins a tie."""
    pieces = {word: list(word) for word in words}
    pairs: Counter[tuple[str, str]] = Counter()
    words_with: dict[tuple[str, str], set[str]] = defaultdict(set)

    def count(word: str, sign: int) -> None:
        for pair in pairwise(pieces[word]):
            pairs[pair] += sign * words[word]
            words_with[pair].add(word)

    for word in words:
        count(word, 1)
    merges: list[tuple[str, str]] = []
    for _ in range(num_merges):
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for word in words_with[best]:
            count(word, -1)
            pieces[word] = _merge(pieces[word], best)
            count(word, 1)
    return merges


def _merge(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    out: list[str] = []
    for piece in pieces:
        if out and (out[-1], piece) == pair:
            out[-1] += piece
        else:
            out.append(piece)
    return out


def _subword_corpus() -> Counter[str]:
    rng = Random(0)
    made_up = [made_up_word(rng, Split.TRAIN) for _ in range(3000)]
    words = Counter(" " + (word.capitalize() if rng.random() < 0.7 else word) for word in made_up)
    words.update(" " + word for word in (*NAMES, *CITIES, *ANIMALS))
    return words


def build_tokenizer() -> Tokenizer:
    """Build the tokenizer from the word lists and phrasings alone, the same at every call."""
    merges = _learn_merges(_subword_corpus(), _NUM_MERGES)
    printable = [chr(code) for code in range(32, 127)]
    other_bytes = [f"<0x{byte:02X}>" for byte in range(256) if not 32 <= byte < 127]
    pieces = [*printable, *(a + b for a, b in merges), *_words()]
    added = _words_of(statements.added_texts())  # at the end, so that weights of a smaller vocabulary keep their rows
    tokens = list(dict.fromkeys([*SPECIAL_TOKENS, *LINE_BREAKS, *pieces, *other_bytes, *added]))
    vocab = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, byte_fallback=True, ignore_merges=True))
    tokenizer.normalizer = normalizers.Prepend(" ")
    pattern = Regex(r"'s| ?[A-Za-z]+| ?[0-9]+| ?[^ A-Za-z0-9]| ")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(pattern, behavior="isolated")
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Fuse(), decoders.Replace("\n ", "\n"), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in LINE_BREAKS])
    return tokenizer


def special_id(tokenizer: Tokenizer, token: str) -> int:
    """Return the id of a token that every factbook tokenizer holds."""
    index = tokenizer.token_to_id(token)
    if index is None:
        raise ValueError(f"the tokenizer has no token {token!r}")
    return index


def tokenizer_config() -> dict[str, Any]:
    """Return the content of tokenizer_config.json, which `transformers.AutoTokenizer` needs beside tokenizer.json."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 2048,
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": EOS,
        "mask_token": MASK,
        "additional_special_tokens": [HEADER_START, HEADER_END, EOT],
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }


def save_tokenizer(directory: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json."""
    directory.mkdir(parents=True, exist_ok=True)
    build_tokenizer().save(str(directory / "tokenizer.json"), pretty=False)
    (directory / "tokenizer_config.json").write_text(json.dumps(tokenizer_config(), indent=2) + "\n")


if __name__ == "__main__":
    save_tokenizer(Path(sys.argv[1]))
