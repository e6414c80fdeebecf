"""Tokenizer of a SentencePiece model, by its own rules or by those of Hugging Face's Llama tokenizers."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mindspeed_llm.chat.special_tokens import SpecialTokens
from mindspeed_llm.errors import ConfigError
from mindspeed_llm.storage.hashing import sha256_of
from mindspeed_llm.tokenization.byte_offsets import ByteOffsets
from mindspeed_llm.tokenization.encoded_texts import EncodedTexts, EncodedTextsWithOffsets, TokenOffsets
from mindspeed_llm.tokenization.encoder_choice import ChosenEncoder, choose_encoder
from mindspeed_llm.tokenization.gigatoken_encoder import GigatokenEncoder
from mindspeed_llm.tokenization.sentencepiece_model import without_added_space
from mindspeed_llm.tokenization.tokenizer import ControlTokenSet, Tokenizer

LIBRARY = "sentencepiece"  # the reference, see encoder_choice.py
SPACE = "\u2581"  # SentencePiece's character for a space
# How a space is added before a text:
#   model   by the model's rule; special tokens are plain text (Megatron's GPTSentencePieceTokenizer)
#   every   before every piece between special tokens ('legacy' of tokenizer_config.json)
#   first   before the first piece ('legacy': false, --tokenizer-not-use-fast)
#   fast    before the first piece, but not if that begins with a space ('legacy': false, the fast tokenizer)
SpaceRule = Literal["model", "every", "first", "fast"]


class _Part(NamedTuple):
    """A special token in a text, or the text between two of them.

    Attributes:
        text: the part.
        start: offset of its first character in the complete text.
        spaced: the part with the space that the rule adds before it.
        token: id of the special token; None for text.
    """

    text: str
    start: int
    spaced: str
    token: int | None


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model, with the tokens and settings of a Hugging Face folder if there is one.

    Args:
        path: path of the model file.
        kind: value of `--tokenizer-type`.
        special: special tokens and settings of the folder; None to use those of the model.
        fast: follow the fast tokenizer of transformers, where the two differ.
        backend: value of `--tokenizer-backend`.

    Raises:
        ConfigError: the file is not a SentencePiece model, or `backend` cannot be used.
    """

    def __init__(
        self,
        path: Path,
        kind: str,
        special: SpecialTokens | None = None,
        fast: bool = True,
        backend: str = LIBRARY,
    ) -> None:
        import sentencepiece

        try:
            content = path.read_bytes()
            # With the rules of a folder, only `_with_space` adds a space before a text.
            model = content if special is None else without_added_space(content)
            self._model = sentencepiece.SentencePieceProcessor(model_proto=model)
        except Exception as error:  # the library raises RuntimeError or OSError, `without_added_space` ValueError
            raise ConfigError(f"{path}: not a SentencePiece model ({error}); download it again") from error
        self.kind = kind
        self.sha256 = sha256_of(content)
        self._space: SpaceRule = "model"
        self._added: dict[str, int] = {}
        self._special: frozenset[str] = frozenset()
        self._special_pattern: re.Pattern[str] | None = None
        self._prefixed = True
        numbers = range(self._model.vocab_size())
        self._is_byte = np.array(self._model.is_byte(list(numbers)), bool)
        self._control = [
            self._model.id_to_piece(n) for n in numbers if self._model.is_control(n) or self._model.is_unknown(n)
        ]
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
        self._choose_encoder(backend, model)

    def _choose_encoder(self, backend: str, model: bytes) -> None:
        """Choose the library for texts without special tokens.

        Args:
            backend: value of `--tokenizer-backend`.
            model: the model as the library reads it.

        Raises:
            ConfigError: `backend` cannot be used.
        """
        # gigatoken reads the strings of control pieces as tokens, the library `sentencepiece` as text.
        control = _any_of(self._control) or re.compile("(?!)")
        # The score of user defined pieces is 0; the library has no method that names them.
        scores = np.array(self._model.get_score(list(range(self._model.vocab_size()))))
        user_defined = np.flatnonzero((scores == 0) & ~self._is_byte).tolist()
        self._encoder = choose_encoder(
            backend,
            LIBRARY,
            self._encode_with_library,
            lambda: GigatokenEncoder.of_sentencepiece(model),
            tokenizer=sha256_of(model),
            added_tokens=[self._model.id_to_piece(number) for number in user_defined],
            differs=lambda text: control.search(text) is not None,
        )
        self.library, self.fallback_reason = self._encoder.library, self._encoder.reason

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
        declared = [*special.added.values(), *special.listed]
        self._special = frozenset([*self._control, *(entry["content"] for entry in declared if entry["special"])])
        self._special_pattern = _any_of({*self._control, *self._added})

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
        # This copy reads strings of control pieces as text, and few texts contain placeholders.
        other._encoder = ChosenEncoder(other._encode_with_library, None, self.library)
        other.__dict__.pop("_byte_offsets", None)
        return other

    def encode_batch(self, texts: Sequence[str]) -> EncodedTexts:
        """Return the ids of each text, int32 [tokens]; several threads may call it at the same time."""
        if self._special_pattern is not None and any(map(self._special_pattern.search, texts)):
            return self.encode_batch_with_offsets(texts).texts
        return self._encoder.encode([self._with_space(text, True) for text in texts])

    def _encode_with_library(self, texts: Sequence[str]) -> EncodedTexts:
        """Return the ids that the library `sentencepiece` returns for each text, int32 [tokens]."""
        return EncodedTexts.of_lists(self._model.encode(list(texts), return_type="numpy", num_threads=1))

    def encode_with_offsets(self, text: str) -> TokenOffsets:
        """Return the ids of one text with the character offsets of each token, [tokens]."""
        return self.encode_batch_with_offsets([text])[0]

    def encode_batch_with_offsets(self, texts: Sequence[str]) -> EncodedTextsWithOffsets:
        """Return the ids and character offsets of each text, [tokens]."""
        parts: list[_Part] = []
        ends_of_texts = [0]
        for text in texts:
            parts += self._split(text)
            ends_of_texts.append(len(parts))
        plain, special = ([part for part in parts if (part.token is None) == kind] for kind in (True, False))
        encoded = self._offsets_of_plain(plain)
        ids = encoded.texts.extended([[part.token] for part in special if part.token is not None])
        starts = np.concatenate([encoded.starts, np.zeros(len(special), np.int64)])
        ends = np.concatenate([encoded.ends, np.array([len(part.text) for part in special], np.int64)])
        # The tokens in the order of the parts: those of the special parts follow all others so far.
        is_special = np.array([part.token is not None for part in parts], bool)
        order = np.where(is_special, len(plain) + np.cumsum(is_special), np.cumsum(~is_special)) - 1
        index, sizes = EncodedTexts(np.arange(len(ids.ids), dtype=np.int32), ids.bounds).gathered(order)
        shift = np.repeat(np.array([part.start for part in parts], np.int64), sizes)
        bounds = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])[ends_of_texts]
        return EncodedTextsWithOffsets(EncodedTexts(ids.ids[index], bounds), starts[index] + shift, ends[index] + shift)

    def _split(self, text: str) -> Iterator[_Part]:
        """Yield the special tokens in `text` and the parts between them."""
        start = 0
        for number, part in enumerate(self._special_pattern.split(text) if self._special_pattern else [text]):
            if number % 2 == 1:  # what the pattern matched
                yield _Part(part, start, part, self.token_id(part))
            elif part:
                yield _Part(part, start, self._with_space(part, start == 0), None)
            start += len(part)

    def _offsets_of_plain(self, parts: Sequence[_Part]) -> EncodedTextsWithOffsets:
        """Return the tokens of parts without special tokens, with offsets in characters of each part."""
        if self._byte_offsets is None or not parts:
            return EncodedTextsWithOffsets.of_texts([self._offsets_of_library(part) for part in parts])
        spaced = [part.spaced for part in parts]
        encoded = self._encoder.encode(spaced)
        added = np.array([len(part.spaced) - len(part.text) for part in parts])
        written = [" " + part.text if space else part.text for part, space in zip(parts, added.tolist(), strict=True)]
        starts, ends, exact = self._byte_offsets.compute(written, encoded)
        normal = self._model.normalize(spaced)
        exact &= np.array([a == b.replace(" ", SPACE) for a, b in zip(normal, spaced, strict=True)], bool)
        shift = np.repeat(added, np.diff(encoded.bounds))
        starts, ends = np.maximum(starts - shift, 0), np.maximum(ends - shift, 0)
        firsts = encoded.bounds[:-1][np.diff(encoded.bounds) > 0]
        ends[firsts] = np.maximum(ends[firsts], 1)
        result = EncodedTextsWithOffsets(encoded, starts, ends)
        if exact.all():
            return result
        return EncodedTextsWithOffsets.of_texts(
            [result[n] if computed else self._offsets_of_library(parts[n]) for n, computed in enumerate(exact.tolist())]
        )

    def _offsets_of_library(self, part: _Part) -> TokenOffsets:
        """Return the tokens of a part without special tokens, with the offsets of the library `sentencepiece`."""
        found = self._model.encode(part.spaced, return_type="offset_mapping")
        ids = np.array(found["ids"], np.int32)
        offsets = np.array(found["offsets"], np.int64).reshape(-1, 2)
        starts, ends = np.maximum(offsets - (len(part.spaced) - len(part.text)), 0).T
        ends = _complete_characters(starts, ends, self._is_byte[ids])
        # Nothing precedes the first token. If it is only the added space, it is given the first character.
        ends[:1] = np.maximum(ends[:1], 1)
        return TokenOffsets(ids, starts, ends)

    @cached_property
    def _byte_offsets(self) -> ByteOffsets | None:
        """Return what computes offsets from bytes; None if the library `sentencepiece` encodes, or adds a space."""
        if self._encoder.fast is None or self._space == "model":
            return None
        pieces = self._model.id_to_piece(list(range(self._model.vocab_size())))
        one_byte = self._is_byte.tolist()
        return ByteOffsets(
            {n: b"?" if one_byte[n] else piece.replace(SPACE, " ").encode() for n, piece in enumerate(pieces)}, False
        )

    def _with_space(self, piece: str, first: bool) -> str:
        """Return `piece` with a space before it, if the rule for spaces requires one."""
        if self._space == "model" or not self._prefixed or not piece:
            return piece
        if self._space == "every" or (first and not (self._space == "fast" and piece[0] in (" ", SPACE))):
            return SPACE + piece
        return piece

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


def _complete_characters(
    starts: NDArray[np.int64], ends: NDArray[np.int64], is_byte: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Return `ends` so that each byte of a character extends over the character.

        tokens    "▁"   E2   82   AC         the library gives the character to its last byte
        starts     0     1    1    1
        ends       1     1    1    2   →   1 2 2 2

    Args:
        starts: offset of the first character of each token, int64 [tokens].
        ends: offset after the last character of each token, int64 [tokens].
        is_byte: whether each token is one byte, bool [tokens].

    Returns:
        The changed offsets, int64 [tokens].
    """
    if not is_byte.any():
        return ends
    continued = is_byte[:-1] & is_byte[1:] & (ends[:-1] == starts[:-1]) & (starts[1:] == starts[:-1])
    is_last = np.append(~continued, True)
    return ends[is_last][np.cumsum(is_last) - is_last]


def _any_of(texts: Iterable[str]) -> re.Pattern[str] | None:
    """Return a pattern that matches each of `texts`; None if there are none."""
    # Longest first, because the first alternative that matches wins and a token may be the beginning of another.
    longest_first = sorted(texts, key=lambda text: (-len(text), text))
    return re.compile("(" + "|".join(map(re.escape, longest_first)) + ")") if longest_first else None
