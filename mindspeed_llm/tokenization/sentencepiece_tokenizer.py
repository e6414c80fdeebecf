"""A SentencePiece model (`tokenizer.model`), as it is or the way that Hugging Face's Llama tokenizers use it."""

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
from mindspeed_llm.tokenization.tokenizer import ControlTokenSet, Ids, Tokenizer, TokenOffsets

SPACE = "\u2581"  # how SentencePiece writes a space
# A model file is one protocol buffer, and what is appended to one replaces the fields that it names: here
# normalizer_spec.add_dummy_prefix = false, so that `_written` alone decides about the space before a text.
WITHOUT_OWN_SPACE = b"\x1a\x02\x18\x00"
# Where the space before a text comes from:
#   model   the model's own rule, special tokens in the text are plain text (Megatron's GPTSentencePieceTokenizer)
#   every   one before every piece between special tokens ('legacy' of tokenizer_config.json)
#   first   one before the first piece ('legacy': false, --tokenizer-not-use-fast)
#   fast    the same, but none before a piece that begins with a space ('legacy': false, the fast tokenizer)
SpaceRule = Literal["model", "every", "first", "fast"]


class SentencePieceTokenizer(Tokenizer):
    """Args:
    path: the model file.
    special: of the folder; None for a model alone, which names its own tokens.
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
        self._specials: re.Pattern[str] | None = None
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
        # Hugging Face's classes add it unless told otherwise; Megatron's SentencePiece tokenizer never does.
        self.adds_bos = special is not None and special.settings.get("add_bos_token") is not False
        self.adds_bos = self.adds_bos and self.bos_id is not None

    def _follow_hugging_face(self, special: SpecialTokens, fast: bool) -> None:
        legacy = special.settings.get("legacy")
        self._space = "every" if legacy is None or legacy else ("fast" if fast else "first")
        self._prefixed = special.settings.get("add_prefix_space") is not False
        self.disagreements = special.disagreements
        self._added = {entry["content"]: number for number, entry in special.added.items()}
        size = self._model.vocab_size()
        following = max([size - 1, *self._added.values()]) + 1
        for entry in special.listed:
            if (text := entry["content"]) not in self._added:
                own = self._model.piece_to_id(text)
                self._added[text] = own if self._model.id_to_piece(own) == text else following
                following += self._added[text] == following
        control = [
            self._model.id_to_piece(n) for n in range(size) if self._model.is_control(n) or self._model.is_unknown(n)
        ]
        declared = [*special.added.values(), *special.listed]
        self._special = frozenset([*control, *(entry["content"] for entry in declared if entry["special"])])
        self._specials = _any_of({*control, *self._added})

    def _id_of(self, token: str | int | None, own: int, named: bool) -> int | None:
        """The id that the folder names, else the model's own, unless the folder says that there is none."""
        if token is None:
            return own if own >= 0 and not named else None
        if isinstance(token, int):
            return token if 0 <= token < self.vocab_size else None
        return self.token_id(token)

    def controls(self, named: Iterable[str] = ()) -> ControlTokenSet:
        return ControlTokenSet(self._special | {text for text in named if self._is_read_in(text)})

    def _is_read_in(self, text: str) -> bool:
        """Whether `text` inside another text is one token; the model has such pieces too ("user defined")."""
        number = self.token_id(text)
        return not text.isalnum() and number is not None and number in self.encode_with_offsets(f"a{text}a").ids

    def with_placeholders(self, placeholders: Mapping[str, str]) -> SentencePieceTokenizer:
        other = copy.copy(self)
        numbers = {text: self.token_id(token) for token, text in placeholders.items()}
        other._added = self._added | {text: number for text, number in numbers.items() if number is not None}
        # Of the pattern's own texts only the control pieces are not among _added.
        other._specials = _any_of({*self._special, *self._added, *numbers} - placeholders.keys())
        return other

    def encode_batch(self, texts: Sequence[str]) -> list[Ids]:
        plain = [self._written(text, True) for text in texts if not self._has_special(text)]
        encoded = iter(self._model.encode(plain, out_type=int, num_threads=1) if plain else ())
        return [
            self.encode_with_offsets(text).ids if self._has_special(text) else np.array(next(encoded), np.int32)
            for text in texts
        ]

    def encode_with_offsets(self, text: str) -> TokenOffsets:
        ids: list[int] = []
        starts: list[int] = []
        ends: list[int] = []
        here, first = 0, True
        for number, piece in enumerate(self._specials.split(text) if self._specials else [text]):
            if piece and number % 2 == 1:  # what the pattern matched
                token = self.token_id(piece)
                assert token is not None, piece
                ids.append(token)
                starts.append(here)
                ends.append(here + len(piece))
            elif piece:
                of_piece, begins, closes = self._place(piece, first)
                ids += of_piece
                starts += [here + begin for begin in begins]
                ends += [here + end for end in closes]
            here += len(piece)
            first = first and not piece
        return TokenOffsets(np.array(ids, np.int32), np.array(starts, np.int64), np.array(ends, np.int64))

    def _place(self, piece: str, first: bool) -> tuple[list[int], list[int], list[int]]:
        """Tokens of text without special tokens, and the characters where each begins and ends, by counting the bytes
        that it stands for."""
        written = self._written(piece, first)
        numbers = self._model.encode(written, out_type=int)
        texts = self._model.encode(written, out_type=str)
        character = [number for number, char in enumerate(piece) for _ in range(len(char.encode()))] + [len(piece)]
        sizes = [
            1 if self._model.is_byte(n) else len(t.replace(SPACE, " ").encode())
            for n, t in zip(numbers, texts, strict=True)
        ]
        at = len(piece.encode()) - sum(sizes)  # below 0 for a space that was put before the text
        starts: list[int] = []
        ends: list[int] = []
        for size in sizes:
            begin, end = (min(max(place, 0), len(character) - 1) for place in (at, at + size))
            starts.append(character[begin])
            ends.append(character[end - 1] + 1 if end > begin else character[begin])
            at += size
        return numbers, starts, ends

    def _written(self, piece: str, first: bool) -> str:
        """`piece` with the space before it that the rule asks for."""
        if self._space == "model" or not self._prefixed or not piece:
            return piece
        if self._space == "every" or (first and not (self._space == "fast" and piece[0] in (" ", SPACE))):
            return SPACE + piece
        return piece

    def _has_special(self, text: str) -> bool:
        return self._specials is not None and self._specials.search(text) is not None

    def decode(self, ids: Sequence[int]) -> str:
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
        if token in self._added:
            return self._added[token]
        number = self._model.piece_to_id(token)
        return number if self._model.id_to_piece(number) == token else None


def _any_of(texts: Iterable[str]) -> re.Pattern[str] | None:
    """A pattern for each of `texts`, longest first; None for none."""
    longest_first = sorted(texts, key=lambda text: (-len(text), text))
    return re.compile("(" + "|".join(map(re.escape, longest_first)) + ")") if longest_first else None
