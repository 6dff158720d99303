"""Texts as vectors of one length: each word, and each pair of neighbours, as the bits of its hash.

The hash is SHA-256, which is the same in every process and language, unlike Python's `hash()`.
`export/runners/flatten.py` contains the same function for devices.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from itertools import pairwise

import numpy as np

TEXT_SIZE = 64  # numbers of a text


@lru_cache(maxsize=4096)
def text_vector(text: str) -> np.ndarray:
    """Return a text as a vector `[64]`; of the empty text, and of white space alone, it is zero.

    A text of n words has 2n − 1 terms: its words, and its pairs of neighbouring words (joined by a space). Words are
    separated by white space; upper and lower case differ. The vector of a term is +1 where one of the first 64 bits of
    its SHA-256 (of UTF-8) is set, and −1 elsewhere. The text's vector is the sum over its terms, divided by the root of
    their number, so that each number has a size of about 1. It is shared, and cannot be written to.
    """
    words = text.split()
    terms = [*words, *(f"{word} {following}" for word, following in pairwise(words))]
    hashes = b"".join(hashlib.sha256(term.encode("utf-8", "surrogatepass")).digest()[:8] for term in terms)
    bits = np.unpackbits(np.frombuffer(hashes, np.uint8)).reshape(-1, TEXT_SIZE)
    vector = (bits * 2.0 - 1.0).sum(0) / max(1.0, len(terms)) ** 0.5
    vector = vector.astype(np.float32)
    vector.flags.writeable = False
    return vector
