"""Character offsets of tokens, computed from the bytes that each token stands for.

This is exact for a byte-level BPE tokenizer and a text that its normalizer leaves unchanged: the bytes of the tokens,
one after the other, are the bytes of the text.

    text             "é x"           é is two bytes
    tokens           C3 A9 | " x"
    bytes            0  1    2 4     cumulative
    starts, ends     0 0  1  , 1 1 3 in characters
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from mindspeed_llm.tokenization.encoded_texts import EncodedTexts

CONTINUATION, LEADING_BITS = 0x80, 0xC0  # a byte 10xxxxxx continues a character (UTF-8)


class ByteOffsets:
    """Compute character offsets for the tokens of a byte-level BPE vocabulary.

    Args:
        token_bytes: token id → its bytes.
        trimmed: whether the spaces at the borders of a token do not belong to its offsets (`trim_offsets` of the
            post-processor in tokenizer.json).
    """

    def __init__(self, token_bytes: Mapping[int, bytes], trimmed: bool) -> None:
        self._sizes = _table(token_bytes, len)
        self._trimmed = trimmed
        if trimmed:
            self._leading = _table(token_bytes, lambda token: len(token) - len(token.lstrip(b" ")))
            self._trailing = _table(token_bytes, lambda token: len(token) - len(token.rstrip(b" ")))

    def compute(
        self, texts: Sequence[str], encoded: EncodedTexts
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
        """Return the offsets of all tokens, each relative to its own text.

        Args:
            texts: the texts.
            encoded: their tokens.

        Returns:
            starts and ends in characters, int64 [tokens], and for each text whether its tokens have exactly as many
            bytes as the text, bool [texts]. The offsets of other texts are meaningless.
        """
        data = np.frombuffer("".join(texts).encode(), np.uint8)
        characters = np.fromiter(map(len, texts), np.int64, len(texts))
        is_ascii = len(data) == int(characters.sum())
        sizes = characters if is_ascii else np.array([len(text.encode()) for text in texts], np.int64)
        token_ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(self._sizes[encoded.ids])])
        exact = np.diff(token_ends[encoded.bounds]) == sizes
        counts = np.diff(encoded.bounds)
        # From bytes of the tokens joined to bytes of the texts joined, which differ after a text that is not exact.
        text_starts = np.cumsum(sizes) - sizes
        shift = np.repeat(text_starts - token_ends[encoded.bounds[:-1]], counts)
        starts, ends = token_ends[:-1] + shift, token_ends[1:] + shift
        first = text_starts
        if not is_ascii:
            # Number of the character that contains each byte, and one more at the end.
            number = np.cumsum((data & LEADING_BITS) != CONTINUATION) - 1
            number = np.append(number, int(characters.sum()))
            starts, ends = (np.clip(offsets, 0, len(data)) for offsets in (starts, ends))
            # A part of a character ends where the character does.
            starts, ends = number[starts], np.where(ends > starts, number[ends - 1] + 1, number[starts])
            first = np.cumsum(characters) - characters
        origin = np.repeat(first, counts)
        starts, ends = starts - origin, ends - origin
        if self._trimmed:
            starts = np.minimum(starts + self._leading[encoded.ids], ends)
            ends = np.maximum(ends - self._trailing[encoded.ids], starts)
        return starts, ends, exact


def _table(token_bytes: Mapping[int, bytes], measure: object) -> NDArray[np.int64]:
    """Return `measure` of the bytes of each id, int64 [ids]; 0 for an id without a token."""
    assert callable(measure)
    table = np.zeros(1 + max(token_bytes, default=-1), np.int64)
    table[np.fromiter(token_bytes, np.int64, len(token_bytes))] = [measure(token) for token in token_bytes.values()]
    return table
