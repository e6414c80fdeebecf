"""Tokenizer of a SentencePiece model, by its own rules or by those of Hugging Face's Llama tokenizers."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from mindspeed_llm.chat.special_tokens import SpecialTokens
from mindspeed_llm.errors import ConfigError
from mindspeed_llm.storage.hashing import sha256_of
from mindspeed_llm.tokenization.encoded_texts import EncodedTexts, TokenOffsets
from mindspeed_llm.tokenization.tokenizer import ControlTokenSet, Tokenizer

SPACE = "\u2581"  # SentencePiece's character for a space
# A model file is one protocol buffer. Appended bytes replace the fields that they set: these set
# normalizer_spec.add_dummy_prefix = false, so that only `_with_space` adds a space before a text.
WITHOUT_OWN_SPACE = b"\x1a\x02\x18\x00"
# How a space is added before a text:
#   model   by the model's rule; special tokens are plain text (Megatron's GPTSentencePieceTokenizer)
#   every   before every piece between special tokens ('legacy' of tokenizer_config.json)
#   first   before the first piece ('legacy': false, --tokenizer-not-use-fast)
#   fast    before the first piece, but not if that begins with a space ('legacy': false, the fast tokenizer)
SpaceRule = Literal["model", "every", "first", "fast"]


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model, with the tokens and settings of a Hugging Face folder if there is one.

    Args:
        path: path of the model file.
        kind: value of `--tokenizer-type`.
        special: special tokens and settings of the folder; None to use those of the model.
        fast: follow the fast tokenizer of transformers, where the two differ.

    Raises:
        ConfigError: the file is not a SentencePiece model.
    """

    def __init__(self, path: Path, kind: str, special: SpecialTokens | None = None, fast: bool = True) -> None:
        import sentencepiece

        try:
            content = path.read_bytes()
            model = content if special is None else content + WITHOUT_OWN_SPACE
            self._model = sentencepiece.SentencePieceProcessor(model_proto=model)
        except Exception as error:  # the library raises RuntimeError or OSError
            raise ConfigError(f"{path}: not a SentencePiece model ({error}); download it again") from error
        self.kind = kind
        self.sha256 = sha256_of(content)
        self._space: SpaceRule = "model"
        self._added: dict[str, int] = {}
        self._special: frozenset[str] = frozenset()
        self._special_pattern: re.Pattern[str] | None = None
        self._prefixed = True
        if special is not None:
            self._follow_hugging_face(special, fast)
        self.vocab_size = 1 + max([self._model.vocab_size() - 1, *self._added.values()])
        own = {name: getattr(self._model, f"{name}_id")() for name in ("bos", "eos", "pad")}
        named = special or SpecialTokens(None, None, None)
        self.bos_id = self._id_of(named.begin, own["bos"], "bos_token" in named.settings)
        self.eos_id = self._id_of(named.end, own["eos"], "eos_token" in named.settings)
        pad = self._id_of(named.pad, own["pad"], "pad_token" in named.settings)
        self.pad_id = self.eos_id if pad is None else pad
        # Hugging Face's classes add it unless the settings forbid it; Megatron's SentencePiece tokenizer never does.
        self.adds_bos = special is not None and special.settings.get("add_bos_token") is not False
        self.adds_bos = self.adds_bos and self.bos_id is not None

    def _follow_hugging_face(self, special: SpecialTokens, fast: bool) -> None:
        """Take over the settings and the added tokens of a Hugging Face folder."""
        legacy = special.settings.get("legacy")
        self._space = "every" if legacy is None or legacy else ("fast" if fast else "first")
        self._prefixed = special.settings.get("add_prefix_space") is not False
        self.disagreements = special.disagreements
        self._added = {entry["content"]: number for number, entry in special.added.items()}
        size = self._model.vocab_size()
        following = max([size - 1, *self._added.values()]) + 1
        for entry in special.listed:
            if (text := entry["content"]) not in self._added:
                # A token that the model lacks gets the next free id, in the order in which the files list them.
                own = self._model.piece_to_id(text)
                self._added[text] = own if self._model.id_to_piece(own) == text else following
                following += self._added[text] == following
        control = [
            self._model.id_to_piece(n) for n in range(size) if self._model.is_control(n) or self._model.is_unknown(n)
        ]
        declared = [*special.added.values(), *special.listed]
        self._special = frozenset([*control, *(entry["content"] for entry in declared if entry["special"])])
        self._special_pattern = _any_of({*control, *self._added})

    def _id_of(self, token: str | int | None, own: int, named: bool) -> int | None:
        """Return the id of a special token: the one that the folder specifies, else the model's own.

        Args:
            token: the token as text or id; None if the folder specifies none.
            own: id of the model; negative if it has none.
            named: whether the folder mentions the token at all, so that None means that there is none.
        """
        if token is None:
            return own if own >= 0 and not named else None
        if isinstance(token, int):
            return token if 0 <= token < self.vocab_size else None
        return self.token_id(token)

    def controls(self, named: Iterable[str] = ()) -> ControlTokenSet:
        """Return the special tokens, and those of `named` that are one token inside another text."""
        return ControlTokenSet(self._special | {text for text in named if self._is_read_as_one(text)})

    def _is_read_as_one(self, text: str) -> bool:
        """Return whether `text` inside another text is read as one token."""
        number = self.token_id(text)
        # The model itself may have such pieces, which SentencePiece calls user defined. A text of letters and digits is
        # taken for an ordinary piece.
        return not text.isalnum() and number is not None and number in self.encode_with_offsets(f"a{text}a").ids

    def with_placeholders(self, placeholders: Mapping[str, str]) -> SentencePieceTokenizer:
        """Return a copy that reads each value of `placeholders` as the token of its key, and the keys as text."""
        other = copy.copy(self)
        numbers = {text: self.token_id(token) for token, text in placeholders.items()}
        other._added = self._added | {text: number for text, number in numbers.items() if number is not None}
        # The pattern matches `_added` and the control pieces of the model, which `_special` contains.
        other._special_pattern = _any_of({*self._special, *self._added, *numbers} - placeholders.keys())
        return other

    def encode_batch(self, texts: Sequence[str]) -> EncodedTexts:
        """Return the ids of each text, int32 [tokens]; several threads may call it at the same time."""
        # Texts without special tokens go to the library in one call; the others have to be split at their special
        # tokens.
        plain = [self._with_space(text, True) for text in texts if not self._has_special(text)]
        encoded = iter(self._model.encode(plain, out_type=int, num_threads=1) if plain else ())
        return EncodedTexts.of_lists(
            self.encode_with_offsets(text).ids if self._has_special(text) else next(encoded) for text in texts
        )

    def encode_with_offsets(self, text: str) -> TokenOffsets:
        """Return the ids of one text with the character offsets of each token, [tokens]."""
        ids: list[int] = []
        starts: list[int] = []
        ends: list[int] = []
        offset, first = 0, True
        for number, piece in enumerate(self._special_pattern.split(text) if self._special_pattern else [text]):
            if piece and number % 2 == 1:  # what the pattern matched
                token = self.token_id(piece)
                assert token is not None, piece
                ids.append(token)
                starts.append(offset)
                ends.append(offset + len(piece))
            elif piece:
                piece_ids, piece_starts, piece_ends = self._piece_offsets(piece, first)
                ids += piece_ids
                starts += [offset + begin for begin in piece_starts]
                ends += [offset + end for end in piece_ends]
            offset += len(piece)
            first = first and not piece
        return TokenOffsets(np.array(ids, np.int32), np.array(starts, np.int64), np.array(ends, np.int64))

    def _piece_offsets(self, piece: str, first: bool) -> tuple[list[int], list[int], list[int]]:
        """Return ids, start offsets and end offsets of the tokens of a text without special tokens, in characters.

        Args:
            piece: the text.
            first: whether it is at the beginning of the complete text.
        """
        spaced = self._with_space(piece, first)
        numbers = self._model.encode(spaced, out_type=int)
        texts = self._model.encode(spaced, out_type=str)
        # The offsets come from counting bytes, because one character may be several tokens of one byte each.
        character = [number for number, char in enumerate(piece) for _ in range(len(char.encode()))] + [len(piece)]
        sizes = [
            1 if self._model.is_byte(n) else len(t.replace(SPACE, " ").encode())
            for n, t in zip(numbers, texts, strict=True)
        ]
        at = len(piece.encode()) - sum(sizes)  # negative for a space that was added before the text
        starts: list[int] = []
        ends: list[int] = []
        for size in sizes:
            begin, end = (min(max(byte, 0), len(character) - 1) for byte in (at, at + size))
            starts.append(character[begin])
            ends.append(character[end - 1] + 1 if end > begin else character[begin])
            at += size
        return numbers, starts, ends

    def _with_space(self, piece: str, first: bool) -> str:
        """Return `piece` with a space before it, if the rule for spaces requires one."""
        if self._space == "model" or not self._prefixed or not piece:
            return piece
        if self._space == "every" or (first and not (self._space == "fast" and piece[0] in (" ", SPACE))):
            return SPACE + piece
        return piece

    def _has_special(self, text: str) -> bool:
        return self._special_pattern is not None and self._special_pattern.search(text) is not None

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`, special tokens included; incomplete characters become U+FFFD."""
        names = {number: text for text, number in self._added.items()}
        size, written = self._model.vocab_size(), bytearray()
        for number in map(int, ids):
            if number in names or not 0 <= number < size:
                written += names.get(number, "\ufffd").encode()
            elif self._model.is_byte(number):
                written.append(int(self._model.id_to_piece(number)[3:-1], 16))  # <0x0A>
            else:
                written += self._model.id_to_piece(number).replace(SPACE, " ").encode()
        return written.decode(errors="replace")

    def token_id(self, token: str) -> int | None:
        """Return the id of the token that is written `token`; None if there is none."""
        if token in self._added:
            return self._added[token]
        # For a text that is no piece the library returns the id of the unknown token, which the second line detects.
        number = self._model.piece_to_id(token)
        return number if self._model.id_to_piece(number) == token else None


def _any_of(texts: Iterable[str]) -> re.Pattern[str] | None:
    """Return a pattern that matches each of `texts`; None if there are none."""
    # Longest first, because the first alternative that matches wins and a token may be the beginning of another.
    longest_first = sorted(texts, key=lambda text: (-len(text), text))
    return re.compile("(" + "|".join(map(re.escape, longest_first)) + ")") if longest_first else None
