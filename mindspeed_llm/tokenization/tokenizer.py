"""The interface of a tokenizer, independent of the library that implements it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from mindspeed_llm.tokenization.encoded_texts import EncodedTexts, EncodedTextsWithOffsets, TokenOffsets

MAX_IDS = 1 << 30  # limit of TokenStore: two bits of its words are for the label


@dataclass(frozen=True)
class ControlTokenSet:
    """Control tokens: strings that a tokenizer reads as one token each, wherever they occur in a text.

    Attributes:
        texts: the strings.
        normalize: normalization after which the tokenizer searches for them as well, so that other strings may be
            read as control tokens ("＜s＞"); None if that cannot happen.
        ascii_too: whether that can also happen in an ASCII text.
    """

    texts: frozenset[str]
    normalize: Callable[[str], str] | None = None
    ascii_too: bool = False


class Tokenizer(ABC):
    """Convert text to token ids and back, without adding any token.

    Attributes:
        kind: value of `--tokenizer-type`.
        sha256: hash of the file that contains the vocabulary.
        vocab_size: number of ids, added tokens included; every id is smaller.
        bos_id: id of the begin token; None if there is none.
        eos_id: id of the end token; None if there is none.
        pad_id: id of the padding token, or of the end token if there is none.
        adds_bos: whether a text begins with the begin token by the tokenizer's own rule. The methods do not add it.
        disagreements: contradictions between the files of the folder, one line each.
        library: name and version of the library that encodes texts.
        fallback_reason: why this is not the fast library (encoder_choice.py); "" if it is, or was not asked for.
    """

    kind: str
    sha256: str
    vocab_size: int
    bos_id: int | None
    eos_id: int | None
    pad_id: int | None
    adds_bos: bool = False
    disagreements: tuple[str, ...] = ()
    library: str = ""
    fallback_reason: str = ""

    @abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> EncodedTexts:
        """Return the ids of each text, int32 [tokens].

        Several threads may call it at the same time, which makes it fast: the libraries do nearly all of the work
        without Python's global interpreter lock.
        """

    @abstractmethod
    def encode_with_offsets(self, text: str) -> TokenOffsets:
        """Return the ids of one text with the character offsets of each token, [tokens]; slower than `encode_batch`."""

    def encode_batch_with_offsets(self, texts: Sequence[str]) -> EncodedTextsWithOffsets:
        """Return the ids and character offsets of each text, [tokens]."""
        return EncodedTextsWithOffsets.of_texts([self.encode_with_offsets(text) for text in texts])

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids` for people to read, special tokens included."""

    @abstractmethod
    def token_id(self, token: str) -> int | None:
        """Return the id of the token that is written `token`; None if there is none."""

    def controls(self, named: Iterable[str] = ()) -> ControlTokenSet:
        """Return the control tokens of this tokenizer.

        Args:
            named: further strings, which count as control tokens if the tokenizer reads them as one token in any text.
        """
        return ControlTokenSet(frozenset())

    def with_placeholders(self, placeholders: Mapping[str, str]) -> Tokenizer:
        """Return a copy that reads placeholders as control tokens, and the control tokens as ordinary text.

        Args:
            placeholders: control token → placeholder. The placeholder has the flags of the token; its id may differ.
        """
        raise NotImplementedError(f"{self.kind} has no control tokens")
