"""Compare the fast tokenizer library with the reference library: their ids must be the same.

- Before its first use with a tokenizer, the fast library encodes a list of hard strings (hard_strings.py). The result
  is cached in `~/.cache/mindspeed_llm/tokenizer_backends/HOST`.
- During a run, one of every TEXTS_PER_COMPARISON texts is encoded by both.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mindspeed_llm.errors import DataError
from mindspeed_llm.storage.atomic_write import atomic_file
from mindspeed_llm.storage.cache_directory import cache_directory_of_this_machine
from mindspeed_llm.storage.hashing import sha256_of
from mindspeed_llm.storage.safe_open import read_file_text
from mindspeed_llm.tokenization.encoded_texts import EncodedTexts
from mindspeed_llm.tokenization.hard_strings import hard_strings

TEXTS_PER_COMPARISON = 1000
COMPARED_CHARACTERS = 100_000  # of a longer text only the beginning is compared: the reference library is slow
SHOWN_CHARACTERS = 60

Encode = Callable[[Sequence[str]], EncodedTexts]


@dataclass(frozen=True)
class EncoderPair:
    """Two encoders of one tokenizer, which must return the same ids.

    Attributes:
        reference: texts → their ids, by the reference library.
        fast: the same by the fast library.
        reference_library: name and version of the reference library.
        fast_library: name and version of the fast library.
    """

    reference: Encode
    fast: Encode
    reference_library: str
    fast_library: str


def first_difference(reference: Encode, fast: Encode, texts: Sequence[str]) -> str | None:
    """Return the first of `texts` for which the two encoders return different ids; None if there is none."""
    for text, expected, actual in zip(texts, reference(texts), fast(texts), strict=True):
        if not np.array_equal(expected, actual):
            return text
    return None


def verify_backend(
    pair: EncoderPair, tokenizer: str, added_tokens: Sequence[str], differs: Callable[[str], bool] = lambda text: False
) -> str:
    """Compare both encoders on the hard strings, or return the cached result of an earlier comparison.

    Args:
        pair: the encoders.
        tokenizer: everything that the ids depend on: hash of the tokenizer's file, and settings.
        added_tokens: strings that the tokenizer reads as one token each.
        differs: whether the libraries may differ on a text, which the fast library then never encodes.

    Returns:
        The reason why the fast encoder must not be used; "" if it returned the same ids for all strings.
    """
    texts = [text for text in hard_strings(added_tokens) if not differs(text)]
    path = _cached_result_path(pair, tokenizer, texts)
    if (cached := _read_result(path)) is not None:
        return cached
    result = _why_not_fast(pair, texts)
    if path is not None:
        # An unwritable directory or a full disk only means that the next start compares again.
        with contextlib.suppress(OSError), atomic_file(path, shared=True, durable=False) as file:
            file.write(json.dumps({"difference": result}).encode())
    return result


class SampledComparison:
    """An encoder that returns the ids of the fast library, and compares one of TEXTS_PER_COMPARISON texts.

    Several threads may call it at the same time. The first text of each process is compared.

    Args:
        pair: the encoders.
        flag: command-line flag that selects the reference library, for the message.

    Raises:
        DataError: the ids of a text differ.
    """

    def __init__(self, pair: EncoderPair, flag: str) -> None:
        self._pair, self._flag = pair, flag
        self._seen, self._lock = 0, threading.Lock()

    def __call__(self, texts: Sequence[str]) -> EncodedTexts:
        """Return the ids of each text, int32 [tokens]."""
        encoded = self._pair.fast(texts)
        # Only a counter is updated for the other texts, so that they cost nothing.
        with self._lock:
            first = -self._seen % TEXTS_PER_COMPARISON
            self._seen += len(texts)
        compared = [texts[number][:COMPARED_CHARACTERS] for number in range(first, len(texts), TEXTS_PER_COMPARISON)]
        if compared:
            self._compare(compared)
        return encoded

    def _compare(self, texts: Sequence[str]) -> None:
        """Encode `texts` with both libraries.

        Raises:
            DataError: the ids of a text differ.
        """
        pair = self._pair
        text = first_difference(pair.reference, pair.fast, texts)
        if text is not None:
            raise DataError(
                f"{_difference(pair, text)}; give {self._flag}, which is slower and correct, and report this text to "
                "the authors of the fast library"
            )


def _why_not_fast(pair: EncoderPair, texts: Sequence[str]) -> str:
    """Return the reason why the fast encoder must not be used for the tokenizer; "" if all ids are equal."""
    try:
        text = first_difference(pair.reference, pair.fast, texts)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic in a Rust library is not an Exception
        return f"{pair.fast_library} failed on the texts of the comparison ({type(error).__name__})"
    return "" if text is None else _difference(pair, text)


def _difference(pair: EncoderPair, text: str) -> str:
    return f"{pair.fast_library} and {pair.reference_library} return different ids for the text {_shown(text)}"


def _shown(text: str) -> str:
    """Return `text` in ASCII with escape sequences, and shortened."""
    if len(text) <= SHOWN_CHARACTERS:
        return ascii(text)
    return f"{text[:SHOWN_CHARACTERS]!a}… ({len(text):,} characters)"


def _cached_result_path(pair: EncoderPair, tokenizer: str, texts: Sequence[str]) -> Path | None:
    """Return the file of the cached result; None if there is no cache directory."""
    folder = cache_directory_of_this_machine("tokenizer_backends")
    # The texts follow from the added tokens and from the rule for texts that are not compared.
    compared = [pair.reference_library, pair.fast_library, tokenizer, sha256_of("\0".join(texts).encode())]
    return None if folder is None else folder / f"{sha256_of(json.dumps(compared).encode())[:32]}.json"


def _read_result(path: Path | None) -> str | None:
    """Return the cached result; None if there is none, or if the file is damaged."""
    try:
        content = json.loads(read_file_text(path)) if path is not None else None
    except (OSError, ValueError, RecursionError):
        return None
    difference = content.get("difference") if isinstance(content, dict) else None
    return difference if isinstance(difference, str) else None
