"""The interface of a tokenizer, independent of the library that implements it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int32]
MOST_IDS = 1 << 30  # limit of TokenStore: two bits of its words are for the label


@dataclass(frozen=True)
class TokenOffsets:
    """The tokens of a text with their character offsets.

        text      hello €                   € is one character of three bytes, here one token each
        tokens    hello   space  E2 82 AC
        starts      0        5      6  6  6
        ends        5        6      7  7  7

    Attributes:
        ids: token ids, int32 [tokens].
        starts: offset of the first character of each token, int64 [tokens].
        ends: offset after the last character of each token, int64 [tokens].
    """

    ids: Ids
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]

    def is_clean_cut(self, token: int) -> bool:
        """Return whether the tokens can be cut before index `token` without splitting a character."""
        return token in (0, len(self.ids)) or bool(self.starts[token] >= self.ends[token - 1])


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
    """

    kind: str
    sha256: str
    vocab_size: int
    bos_id: int | None
    eos_id: int | None
    pad_id: int | None
    adds_bos: bool = False
    disagreements: tuple[str, ...] = ()

    @abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> list[Ids]:
        """Return the ids of each text, int32 [tokens] per text.

        Several threads may call it at the same time, which makes it fast: the libraries do nearly all of the work
        without Python's global interpreter lock.
        """

    @abstractmethod
    def encode_with_offsets(self, text: str) -> TokenOffsets:
        """Return the ids of one text with the character offsets of each token, [tokens]; slower than `encode_batch`."""

    def encode_batch_with_offsets(self, texts: Sequence[str]) -> list[TokenOffsets]:
        """Return the ids and character offsets of each text, [tokens] per text."""
        return [self.encode_with_offsets(text) for text in texts]

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
