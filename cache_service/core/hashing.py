"""Address prefixes by their content: (fingerprint, salt, all token ids) -> `PrefixKey`.

The whole prefix is hashed, never a chain of pages: under bidirectional attention the entry of a shorter prefix
isn't a truncation of a longer one, so prefixes that begin alike have unrelated keys.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence

from cache_service.core.types import PrefixKey

KEY_BYTES = 20


def prefix_keys(fingerprint: str, salt: str, token_ids: Sequence[int], lengths: Sequence[int]) -> list[PrefixKey]:
    """Return the keys of the prefixes of `token_ids` with the given ascending `lengths`, in one pass.

    `fingerprint` identifies weights, dtype and tokenizer, and `salt` the tenant: prefixes that differ in
    either have different keys. Raises ValueError if the lengths don't ascend or exceed the tokens.
    """
    digest = hashlib.blake2b(digest_size=KEY_BYTES)
    for text in (fingerprint, salt):
        encoded = text.encode()
        digest.update(len(encoded).to_bytes(8, "little"))
        digest.update(encoded)
    keys: list[PrefixKey] = []
    start = 0
    for length in lengths:
        if not start <= length <= len(token_ids):
            raise ValueError(f"prefix lengths must ascend within {len(token_ids)} tokens, got {list(lengths)}")
        digest.update(array("I", token_ids[start:length]).tobytes())
        keys.append(PrefixKey(digest.copy().digest()))
        start = length
    return keys
