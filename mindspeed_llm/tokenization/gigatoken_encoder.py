"""Encode texts with the library `gigatoken`, which is an order of magnitude faster than the reference libraries.

It is optional (`pip install -e '.[fast]'`). It returns ids only: no character offsets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mindspeed_llm.tokenization.encoded_texts import EncodedTexts

PACKAGE = "gigatoken"


class UnsupportedTokenizerError(Exception):
    """gigatoken is not installed, or cannot load a tokenizer; the message is the reason."""


class GigatokenEncoder:
    """A tokenizer of gigatoken.

    Args:
        tokenizer: the library's tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer.backend

    @classmethod
    def of_json(cls, content: bytes | str) -> GigatokenEncoder:
        """Load the content of a tokenizer.json.

        Raises:
            UnsupportedTokenizerError: gigatoken is not installed or cannot load it.
        """
        return cls(_loaded("from_json", content))

    @classmethod
    def of_sentencepiece(cls, content: bytes) -> GigatokenEncoder:
        """Load the content of a SentencePiece model.

        Raises:
            UnsupportedTokenizerError: gigatoken is not installed or cannot load it.
        """
        return cls(_loaded("from_sentencepiece", content))

    def encode_batch(self, texts: Sequence[str]) -> EncodedTexts:
        """Return the ids of each text, int32 [tokens]; several threads may call it at the same time."""
        # One text after the other: the library's own batches are a quarter faster, but they import awkward, which takes
        # 0.4 s and 15 MiB in every process.
        encode = self._tokenizer.encode
        return EncodedTexts.of_arrays([encode(text).view(np.int32) for text in texts])

    @property
    def vocab_size(self) -> int:
        """One more than the largest token id."""
        size: int = self._tokenizer.vocab_size
        return size

    def token_bytes(self) -> dict[int, bytes]:
        """Return the bytes of each token id, of added tokens too."""
        vocabulary: dict[int, bytes] = self._tokenizer.vocab
        return vocabulary


def gigatoken_version() -> str:
    """Return the version of the installed library; "" if it is not installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(PACKAGE)
    except PackageNotFoundError:
        return ""


def _loaded(method: str, content: bytes | str) -> Any:
    """Call a constructor of gigatoken.Tokenizer.

    Raises:
        UnsupportedTokenizerError: the library is missing or fails.
    """
    try:
        import gigatoken
    except ImportError as error:
        raise UnsupportedTokenizerError("gigatoken is not installed (pip install -e '.[fast]')") from error
    try:
        return getattr(gigatoken.Tokenizer, method)(content)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library raises various errors; a panic of its Rust code is no Exception
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UnsupportedTokenizerError(f"gigatoken cannot load it ({reason})") from error
