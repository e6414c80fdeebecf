"""Choose the library that encodes texts: gigatoken if possible, otherwise the reference library of the tokenizer.

    tokenizer.json     reference library `tokenizers`
    tokenizer.model    reference library `sentencepiece`

gigatoken must give the ids of the reference library. It encodes a list of hard strings when it is first used with a
tokenizer, and one of a thousand texts of a run is encoded by both (backend_verification.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mindspeed_llm.errors import ConfigError
from mindspeed_llm.tokenization.encoded_texts import EncodedTexts
from mindspeed_llm.tokenization.gigatoken_encoder import (
    PACKAGE,
    GigatokenEncoder,
    UnsupportedTokenizerError,
    gigatoken_version,
)

BACKENDS = ("auto", "gigatoken", "tokenizers", "sentencepiece")
Encode = Callable[[Sequence[str]], EncodedTexts]


@dataclass(frozen=True)
class ChosenEncoder:
    """The encoder of a tokenizer.

    Attributes:
        encode: texts → their ids.
        fast: the encoder of gigatoken; None if the reference library encodes.
        library: name and version of the library that encodes.
        reason: why gigatoken is not used, although it was to be used if possible; else "".
    """

    encode: Encode
    fast: GigatokenEncoder | None
    library: str
    reason: str = ""


def choose_encoder(backend: str, reference: str, encode: Encode, load: Callable[[], GigatokenEncoder]) -> ChosenEncoder:
    """Return the encoder for the value of --tokenizer-backend.

    Args:
        backend: one of BACKENDS.
        reference: name of the reference library.
        encode: encodes with the reference library.
        load: loads the tokenizer into gigatoken.

    Raises:
        ConfigError: the flag names the reference library of another kind of file, or gigatoken, which cannot be used.
    """
    from importlib.metadata import version

    own = f"{reference} {version(reference)}"
    if backend == reference:
        return ChosenEncoder(encode, None, own)
    if backend not in ("auto", PACKAGE):
        raise ConfigError(
            f"--tokenizer-backend {backend}: this tokenizer is read by {reference}; give {reference}, gigatoken or auto"
        )
    try:
        fast = load()
    except UnsupportedTokenizerError as error:
        if backend == PACKAGE:
            raise ConfigError(f"--tokenizer-backend gigatoken: {error}; give auto or {reference}") from error
        return ChosenEncoder(encode, None, own, str(error))
    return ChosenEncoder(fast.encode_batch, fast, f"{PACKAGE} {gigatoken_version()}")
