"""What the rest of the program needs of a tokenizer, whichever library is behind it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int32]
MOST_IDS = 1 << 30  # what TokenStore can hold: its words have two bits for the label


@dataclass(frozen=True)
class TokenOffsets:
    """A text's tokens with the characters that each of them stands for.

    Attributes:
        ids: int32 [n].
        starts, ends: int64 [n], characters of the text; tokens that share a character (its bytes) overlap.
    """

    ids: Ids
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]

    def is_clean_cut(self, token: int) -> bool:
        """Whether the text may be cut before `token` without splitting a character."""
        return token in (0, len(self.ids)) or bool(self.starts[token] >= self.ends[token - 1])


@dataclass(frozen=True)
class ControlTokenSet:
    """Control tokens: strings that a tokenizer reads as one token each wherever they stand in a text.

    Attributes:
        texts: as they are written.
        normalize: the tokenizer also looks for them in the normalized text, where others may come to light ("＜s＞");
            None if that cannot be.
        ascii_too: texts that are ASCII may hide such ones as well.
    """

    texts: frozenset[str]
    normalize: Callable[[str], str] | None = None
    ascii_too: bool = False


class Tokenizer(ABC):
    """Text to ids; never adds a token of its own accord.

    Attributes:
        kind: the value of `--tokenizer-type`.
        sha256: of the file that holds the vocabulary.
        vocab_size: with the added tokens; every id is below it.
        bos_id, eos_id: None if the tokenizer has no such token.
        pad_id: the pad token, or the end token if there is none.
        adds_bos: by its own rule a text begins with the begin token. (Nothing is added here: the caller may ask.)
        disagreements: what the files of its folder say differently, a line each.
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
        """The ids of each text. Several threads may ask at a time, which is what makes it fast: nearly all of the work
        is done without Python's lock."""

    @abstractmethod
    def encode_with_offsets(self, text: str) -> TokenOffsets:
        """The same ids for one text, with where they come from. Slower."""

    def encode_batch_with_offsets(self, texts: Sequence[str]) -> list[TokenOffsets]:
        """The same for many texts."""
        return [self.encode_with_offsets(text) for text in texts]

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """The text of these tokens, special ones as they are written; for people to read."""

    @abstractmethod
    def token_id(self, token: str) -> int | None:
        """The id of the one token that is written `token`, None if there is none."""

    def controls(self, named: Iterable[str] = ()) -> ControlTokenSet:
        """Return the control tokens: those that are special, and those of `named` that it looks for in texts."""
        return ControlTokenSet(frozenset())

    def with_placeholders(self, placeholders: Mapping[str, str]) -> Tokenizer:
        """Return a copy for which each key of `placeholders`, a control token, is ordinary text.

        Each value is a token in its place, of the same flags; its id may be another.
        """
        raise NotImplementedError(f"{self.kind} has no control tokens")
