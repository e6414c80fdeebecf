"""Choose the library that encodes texts: gigatoken if possible, otherwise the reference library of the tokenizer.

    tokenizer.json     reference library `tokenizers`
    tokenizer.model    reference library `sentencepiece`

gigatoken must give the ids of the reference library. It encodes a list of hard strings when it is first used with a
tokenizer, and one of a thousand texts of a run is encoded by both (backend_verification.py). Texts on which the two are
known to differ are encoded by the reference library.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mindspeed_llm.errors import ConfigError
from mindspeed_llm.tokenization.backend_verification import Encode, EncoderPair, SampledComparison, verify_backend
from mindspeed_llm.tokenization.encoded_texts import EncodedTexts, Ids
from mindspeed_llm.tokenization.gigatoken_encoder import (
    PACKAGE,
    GigatokenEncoder,
    UnsupportedTokenizerError,
    gigatoken_version,
)

BACKENDS = ("auto", "gigatoken", "tokenizers", "sentencepiece")
FLAG = "--tokenizer-backend"


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


class RoutedEncoder:
    """Encode most texts with the fast library, and those on which the libraries may differ with the reference library.

    Args:
        fast: encodes with the fast library.
        reference: encodes with the reference library.
        differs: whether the libraries may differ on a text. If it is true for a text, it is true for each text that
            contains it.
    """

    def __init__(self, fast: Encode, reference: Encode, differs: Callable[[str], bool]) -> None:
        self._fast, self._reference, self._differs = fast, reference, differs

    def __call__(self, texts: Sequence[str]) -> EncodedTexts:
        """Return the ids of each text, int32 [tokens]."""
        # Nearly always one check of all texts together is sufficient.
        if not self._differs("".join(texts)):
            return self._fast(texts)
        routed = [self._differs(text) for text in texts]
        reference = iter(self._reference([text for text, mark in zip(texts, routed, strict=True) if mark]))
        fast = iter(self._fast([text for text, mark in zip(texts, routed, strict=True) if not mark]))
        ids: list[Ids] = [next(reference) if mark else next(fast) for mark in routed]
        return EncodedTexts.of_arrays(ids)


def choose_encoder(
    backend: str,
    reference: str,
    encode: Encode,
    load: Callable[[], GigatokenEncoder],
    *,
    tokenizer: str,
    added_tokens: Sequence[str],
    differs: Callable[[str], bool],
) -> ChosenEncoder:
    """Return the encoder for the value of --tokenizer-backend.

    Args:
        backend: one of BACKENDS.
        reference: name of the reference library.
        encode: encodes with the reference library.
        load: loads the tokenizer into gigatoken.
        tokenizer: everything that the ids depend on: hash of the tokenizer's file, and settings.
        added_tokens: strings that the tokenizer reads as one token each.
        differs: whether the libraries may differ on a text, which the reference library then encodes.

    Raises:
        ConfigError: the flag names the reference library of another kind of file, or gigatoken, which cannot be used
            or gives other ids.
    """
    from importlib.metadata import version

    own = f"{reference} {version(reference)}"
    if backend == reference:
        return ChosenEncoder(encode, None, own)
    if backend not in ("auto", PACKAGE):
        raise ConfigError(
            f"{FLAG} {backend}: this tokenizer is read by {reference}; give {reference}, gigatoken or auto"
        )
    try:
        fast = load()
        routed = RoutedEncoder(fast.encode_batch, encode, differs)
        pair = EncoderPair(encode, routed, own, f"{PACKAGE} {gigatoken_version()}")
        if difference := verify_backend(pair, tokenizer, added_tokens, differs):
            raise UnsupportedTokenizerError(difference)
    except UnsupportedTokenizerError as error:
        if backend == PACKAGE:
            raise ConfigError(f"{FLAG} gigatoken: {error}; give auto or {reference}") from error
        return ChosenEncoder(encode, None, own, str(error))
    return ChosenEncoder(SampledComparison(pair, f"{FLAG} {reference}"), fast, pair.fast_library)
