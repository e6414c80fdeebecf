"""Tokenizer of a Hugging Face folder with tokenizer.json, through the library `tokenizers` or `gigatoken`."""

from __future__ import annotations

import copy
import itertools
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mindspeed_llm.chat.special_tokens import SpecialTokens
from mindspeed_llm.errors import ConfigError
from mindspeed_llm.storage.hashing import sha256_of
from mindspeed_llm.tokenization.byte_offsets import ByteOffsets
from mindspeed_llm.tokenization.encoded_texts import EncodedTexts, EncodedTextsWithOffsets, TokenOffsets
from mindspeed_llm.tokenization.encoder_choice import ChosenEncoder, choose_encoder
from mindspeed_llm.tokenization.gigatoken_encoder import GigatokenEncoder
from mindspeed_llm.tokenization.recent_characters import has_recent_characters
from mindspeed_llm.tokenization.tokenizer import ControlTokenSet, Tokenizer

if TYPE_CHECKING:
    import tokenizers

LIBRARY = "tokenizers"  # the reference, see encoder_choice.py
UNICODE_FORMS = ("NFC", "NFD", "NFKC", "NFKD")


class HuggingFaceTokenizer(Tokenizer):
    """A tokenizer.json, with the tokens that other files of its folder add.

    Args:
        path: path of tokenizer.json.
        special: special tokens and settings that the other files of the folder declare.
        backend: value of `--tokenizer-backend`.

    Raises:
        ConfigError: tokenizer.json cannot be read, files of the folder contradict each other, or `backend` cannot be
            used.
    """

    def __init__(self, path: Path, special: SpecialTokens, backend: str = LIBRARY) -> None:
        import tokenizers

        # The callers use threads of their own. Those of the library take a sixth more processor time, because one
        # thread frees what another one has allocated. Only this variable switches them off.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        try:
            content = path.read_bytes()
            self._rust = tokenizers.Tokenizer.from_str(content.decode())
        except Exception as error:  # the library raises plain Exception for a file that it cannot read
            raise ConfigError(
                f"--tokenizer-name-or-path: {path} cannot be read ({error}); download it again"
            ) from error
        # tokenizer.json may specify truncation and padding. Here samples are cut by their turns and packed instead.
        self._rust.no_truncation()
        self._rust.no_padding()
        self.kind = "PretrainedFromHF"
        self.sha256 = sha256_of(content)
        complete = self._add_declared_tokens(special, path)
        self._check_prefix_space(special, path)
        self.bos_id = self._id_of(special.begin)
        self.eos_id = self._id_of(special.end)
        pad = self._id_of(special.pad)
        self.pad_id = self.eos_id if pad is None else pad
        self.adds_bos = self.bos_id is not None and self._adds_bos(special)
        self.disagreements = special.disagreements
        self._encoder = choose_encoder(
            backend,
            LIBRARY,
            self._encode_with_library,
            lambda: GigatokenEncoder.of_json(content if complete else self._rust.to_str()),
            tokenizer=self.sha256 if complete else sha256_of(self._rust.to_str().encode()),
            added_tokens=[token.content for token in self._rust.get_added_tokens_decoder().values()],
            differs=has_recent_characters,
        )
        self.library, self.fallback_reason = self._encoder.library, self._encoder.reason
        if (fast := self._encoder.fast) is not None:
            self.vocab_size = fast.vocab_size
        else:
            self.vocab_size = 1 + max(self._rust.get_vocab(with_added_tokens=True).values(), default=-1)

    def _add_declared_tokens(self, special: SpecialTokens, path: Path) -> bool:
        """Add the tokens that other files of the folder declare and tokenizer.json does not have.

        Returns:
            whether tokenizer.json had all of them already.

        Raises:
            ConfigError: a token has another id than a file declares for it.
        """
        import tokenizers

        entries = [entry for _, entry in sorted(special.added.items())] + list(special.listed)
        present = {token.content for token in self._rust.get_added_tokens_decoder().values()}
        # Of several entries for one token the first one wins, hence the reversed order here. Ids are assigned in the
        # order of addition, hence the tokens with a declared id come first, by id.
        new = {entry["content"]: entry for entry in reversed(entries) if entry["content"] not in present}
        order = [new.pop(entry["content"]) for entry in entries if entry["content"] in new]
        _add_tokens(self._rust, [tokenizers.AddedToken(**entry) for entry in order])
        for number, entry in sorted(special.added.items()):
            content = entry["content"]
            if self._rust.token_to_id(content) != number:
                declared = (
                    "tokenizer_config.json" if "added_tokens_decoder" in special.settings else "added_tokens.json"
                )
                raise ConfigError(
                    f"--tokenizer-name-or-path: {path.parent}: {declared} declares {content} with the id {number}, but "
                    f"its id in tokenizer.json is {self._rust.token_to_id(content)}; take both files from one download"
                )
        return not order

    def _check_prefix_space(self, special: SpecialTokens, path: Path) -> None:
        """Check that the files of the folder agree on whether a space is added before each text.

        Raises:
            ConfigError: they disagree.
        """
        # Which file wins depends on the version of transformers, so neither of them can be preferred here.
        configured, actual = special.settings.get("add_prefix_space"), _adds_prefix_space(self._rust)
        if isinstance(configured, bool) and actual is not None and configured != actual:
            raise ConfigError(
                f"--tokenizer-name-or-path: {path.parent}: add_prefix_space is {json.dumps(configured)} in "
                f"tokenizer_config.json and {json.dumps(actual)} in tokenizer.json; take both files from one download, "
                "or correct the wrong value"
            )

    def _id_of(self, token: str | int | None) -> int | None:
        """Return the id of a special token given as text or as id; None if the vocabulary does not have it."""
        if isinstance(token, int):
            return token if self._rust.id_to_token(token) is not None else None
        return None if token is None else self._rust.token_to_id(token)

    def _adds_bos(self, special: SpecialTokens) -> bool:
        """Return whether a text begins with the begin token by the rule of transformers.

        The Llama class decides by its settings, the other classes by the post-processor of tokenizer.json.
        """
        configured = special.settings.get("add_bos_token")
        if str(special.settings.get("tokenizer_class", "")).startswith("Llama"):
            return configured is not False
        return bool(configured) or self._rust.encode("x").ids[:1] == [self.bos_id]

    def encode_batch(self, texts: Sequence[str]) -> EncodedTexts:
        """Return the ids of each text, int32 [tokens]; several threads may call it at the same time."""
        return self._encoder.encode(texts)

    def _encode_with_library(self, texts: Sequence[str]) -> EncodedTexts:
        """Return the ids of each text from the library `tokenizers`, int32 [tokens]."""
        encodings = self._rust.encode_batch_fast(list(texts), add_special_tokens=False)
        return EncodedTexts.of_lists(encoding.ids for encoding in encodings)

    def encode_with_offsets(self, text: str) -> TokenOffsets:
        """Return the ids of one text with the character offsets of each token, [tokens]."""
        return self.encode_batch_with_offsets([text])[0]

    def encode_batch_with_offsets(self, texts: Sequence[str]) -> EncodedTextsWithOffsets:
        """Return the ids and character offsets of each text, [tokens]."""
        if self._byte_offsets is None:
            return EncodedTextsWithOffsets.of_texts(self._offsets_of_library(texts))
        encoded = self._encoder.encode(texts)
        starts, ends, exact = self._byte_offsets.compute(texts, encoded)
        exact &= np.fromiter(map(self._is_normal, texts), bool, len(texts))
        result = EncodedTextsWithOffsets(encoded, starts, ends)
        if exact.all():
            return result
        others = iter(self._offsets_of_library([texts[number] for number in np.flatnonzero(~exact).tolist()]))
        return EncodedTextsWithOffsets.of_texts(
            [result[number] if computed else next(others) for number, computed in enumerate(exact.tolist())]
        )

    def _offsets_of_library(self, texts: Sequence[str]) -> list[TokenOffsets]:
        """Return the ids and character offsets of each text from the library `tokenizers`, [tokens] per text."""
        return [_token_offsets(encoding) for encoding in self._rust.encode_batch(list(texts), add_special_tokens=False)]

    @cached_property
    def _byte_offsets(self) -> ByteOffsets | None:
        """Return what computes offsets from bytes; None if gigatoken does not encode, or the model has no bytes."""
        if self._encoder.fast is None or not _is_byte_level(self._rust):
            return None
        states = _parts_of(self._rust.post_processor)
        trimmed = any(part.get("type") == "ByteLevel" and part.get("trim_offsets") for part in states)
        return ByteOffsets(self._encoder.fast.token_bytes(), trimmed)

    def _is_normal(self, text: str) -> bool:
        """Return whether the normalizer leaves `text` unchanged."""
        normalizer = self._rust.normalizer
        # The four normalization forms of Unicode leave ASCII unchanged (Unicode Standard Annex 15, 1.3).
        if normalizer is None or (self._is_unicode_form and text.isascii()):
            return True
        return bool(normalizer.normalize_str(text) == text)

    @cached_property
    def _is_unicode_form(self) -> bool:
        return [part.get("type") in UNICODE_FORMS for part in _parts_of(self._rust.normalizer)] == [True]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`, special tokens included."""
        return self._rust.decode([int(number) for number in ids], skip_special_tokens=False)

    def token_id(self, token: str) -> int | None:
        """Return the id of the token that is written `token`; None if there is none."""
        return self._rust.token_to_id(token)

    def controls(self, named: Iterable[str] = ()) -> ControlTokenSet:
        """Return the special tokens, and those of `named` that are added tokens."""
        names = set(named)
        added = self._rust.get_added_tokens_decoder().values()
        tokens = [token for token in added if token.special or token.content in names]
        normalizer = self._rust.normalizer
        revealing = (
            normalizer is not None and any(token.normalized for token in tokens) and _may_reveal_tokens(normalizer)
        )
        normalize = normalizer.normalize_str if revealing else None
        return ControlTokenSet(
            frozenset(token.content for token in tokens), normalize, revealing and not _keeps_ascii(normalizer)
        )

    def with_placeholders(self, placeholders: Mapping[str, str]) -> HuggingFaceTokenizer:
        """Return a copy that reads each value of `placeholders` as the token of its key, and the keys as text."""
        other = copy.copy(self)
        other._rust = _with_placeholders(self._rust, placeholders)
        # Few texts contain placeholders, so the library that is slower, but loaded already, encodes them.
        other._encoder = ChosenEncoder(other._encode_with_library, None, self.library)
        other.__dict__.pop("_byte_offsets", None)
        return other


def _adds_prefix_space(rust: tokenizers.Tokenizer) -> bool | None:
    """Return whether a tokenizer.json adds a space before a text; None if no part of it specifies this."""
    values: list[bool] = []
    for state in (*_parts_of(rust.normalizer), *_parts_of(rust.pre_tokenizer)):
        if state.get("type") == "Prepend":
            values.append(True)
        elif state.get("type") == "Metaspace":
            values.append(state.get("prepend_scheme", "always") != "never")
        elif state.get("type") == "ByteLevel":
            values.append(bool(state.get("add_prefix_space")))
    return any(values) if values else None


def _with_placeholders(rust: tokenizers.Tokenizer, placeholders: Mapping[str, str]) -> tokenizers.Tokenizer:
    """Return a copy that reads the values of `placeholders` in place of the keys; both share one model."""
    import tokenizers

    other = tokenizers.Tokenizer(rust.model)
    for part in ("normalizer", "pre_tokenizer", "post_processor"):
        if (value := getattr(rust, part)) is not None:
            setattr(other, part, value)
    tokens = [token for _, token in sorted(rust.get_added_tokens_decoder().items())]

    def added_token(token: tokenizers.AddedToken, text: str, special: bool) -> tokenizers.AddedToken:
        flags = {name: getattr(token, name) for name in ("single_word", "lstrip", "rstrip", "normalized")}
        return tokenizers.AddedToken(text, special=special, **flags)

    # All tokens keep their ids. `encode_special_tokens` makes the library read special tokens as ordinary text. So the
    # keys, and no other tokens, are added as special ones.
    _add_tokens(other, [added_token(token, token.content, token.content in placeholders) for token in tokens])
    replaced = [token for token in tokens if token.content in placeholders]
    _add_tokens(other, [added_token(token, placeholders[token.content], False) for token in replaced])
    other.encode_special_tokens = True
    return other


def _parts_of(component: Any) -> list[dict[str, Any]]:
    """Return the parts of a normalizer, pre-tokenizer or post-processor as JSON objects, without sequences."""
    if component is None:
        return []
    states, parts = [json.loads(component.__getstate__())], []
    while states:
        state = states.pop()
        if state.get("type") != "Sequence":
            parts.append(state)
        for name in ("normalizers", "pretokenizers", "processors"):
            states += state.get(name, [])
    return parts


def _is_byte_level(rust: tokenizers.Tokenizer) -> bool:
    """Return whether every token stands for bytes of the text: BPE on bytes, without a space before the text."""
    from tokenizers import models

    parts = [part for part in _parts_of(rust.pre_tokenizer) if part.get("type") == "ByteLevel"]
    return isinstance(rust.model, models.BPE) and bool(parts) and not any(p.get("add_prefix_space") for p in parts)


def _may_reveal_tokens(normalizer: Any) -> bool:
    """Return whether a normalized text may contain a token that the text itself does not contain."""
    return any(
        # These two write SentencePiece's sign for a space, which makes no token.
        part.get("type") != "Prepend" and not (part.get("type") == "Replace" and part.get("pattern") == {"String": " "})
        for part in _parts_of(normalizer)
    )


def _keeps_ascii(normalizer: Any) -> bool:
    """Return whether no part of the normalizer makes other letters of ASCII, as Lowercase does."""
    kept = ("NFC", "NFD", "NFKC", "NFKD", "Prepend", "Replace")
    return all(part.get("type") in kept for part in _parts_of(normalizer))


def _add_tokens(rust: tokenizers.Tokenizer, tokens: Iterable[tokenizers.AddedToken]) -> None:
    """Add `tokens` in their order to the tokenizer `rust`."""
    # As many as possible per call, because each call processes all tokens that were added before.
    for special, group in itertools.groupby(tokens, lambda token: token.special):
        (rust.add_special_tokens if special else rust.add_tokens)(list(group))


def _token_offsets(encoding: Any) -> TokenOffsets:
    """Return the ids and character offsets of one encoding of the library."""
    spans = np.array(encoding.offsets, np.int64).reshape(-1, 2)
    return TokenOffsets(np.array(encoding.ids, np.int32), spans[:, 0], spans[:, 1])
