"""Tokenizer of a Hugging Face folder with tokenizer.json, through the Rust library `tokenizers`."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mindspeed_llm.chat.special_tokens import SpecialTokens
from mindspeed_llm.errors import ConfigError
from mindspeed_llm.storage.hashing import sha256_of
from mindspeed_llm.tokenization.tokenizer import ControlTokenSet, Ids, Tokenizer, TokenOffsets
from mindspeed_llm.tokenization.tokenizer_json import add_tokens, read_tokenizer

if TYPE_CHECKING:
    import tokenizers

# Texts per call: few enough that the strings which the library allocates, one per token, stay in the processor's
# caches.
TEXTS_AT_ONCE = 100


class HuggingFaceTokenizer(Tokenizer):
    """A tokenizer.json, with the tokens that other files of its folder add.

    Args:
        path: path of tokenizer.json.
        special: special tokens and settings that the other files of the folder declare.

    Raises:
        ConfigError: tokenizer.json cannot be read, or files of the folder contradict each other.
    """

    def __init__(self, path: Path, special: SpecialTokens) -> None:
        # The callers use threads of their own. Those of the library take a sixth more processor time, because one
        # thread frees what another one has allocated. Only this variable switches them off.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        try:
            content = path.read_bytes()
            self._rust, last_id = read_tokenizer(content)
        except Exception as error:  # the library raises plain Exception for a file that it cannot read
            raise ConfigError(
                f"--tokenizer-name-or-path: {path} cannot be read ({error}); download it again"
            ) from error
        # tokenizer.json may specify truncation and padding. Here samples are cut by their turns and packed instead.
        self._rust.no_truncation()
        self._rust.no_padding()
        self.kind = "PretrainedFromHF"
        self.sha256 = sha256_of(content)
        self._add_declared_tokens(special, path)
        self._check_prefix_space(special, path)
        self.vocab_size = 1 + max([last_id, *self._rust.get_added_tokens_decoder()])
        self.bos_id = self._id_of(special.begin)
        self.eos_id = self._id_of(special.end)
        pad = self._id_of(special.pad)
        self.pad_id = self.eos_id if pad is None else pad
        self.adds_bos = self.bos_id is not None and self._adds_bos(special)
        self.disagreements = special.disagreements
        self._for_ascii = _without_normalizer(self._rust) or self._rust

    def _add_declared_tokens(self, special: SpecialTokens, path: Path) -> None:
        """Add the tokens that other files of the folder declare and tokenizer.json does not have.

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
        add_tokens(self._rust, [tokenizers.AddedToken(**entry) for entry in order])
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

    def encode_batch(self, texts: Sequence[str]) -> list[Ids]:
        """Return the ids of each text, int32 [tokens] per text; several threads may call it at the same time."""
        results: list[Ids] = [np.zeros(0, np.int32)] * len(texts)
        ascii_texts = [number for number, text in enumerate(texts) if text.isascii()]
        other_texts = [number for number, text in enumerate(texts) if not text.isascii()]
        for rust, numbers in ((self._for_ascii, ascii_texts), (self._rust, other_texts)):
            for start in range(0, len(numbers), TEXTS_AT_ONCE):
                chunk = numbers[start : start + TEXTS_AT_ONCE]
                for number, ids in zip(chunk, _ids_of(rust, [texts[number] for number in chunk]), strict=True):
                    results[number] = ids
        return results

    def encode_with_offsets(self, text: str) -> TokenOffsets:
        """Return the ids of one text with the character offsets of each token, [tokens]."""
        return _token_offsets(self._rust.encode(text, add_special_tokens=False))

    def encode_batch_with_offsets(self, texts: Sequence[str]) -> list[TokenOffsets]:
        """Return the ids and character offsets of each text, [tokens] per text."""
        return [_token_offsets(encoding) for encoding in self._rust.encode_batch(list(texts), add_special_tokens=False)]

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
        # The variant for ASCII texts is replaced as well: it would still read the keys as tokens.
        other._rust = other._for_ascii = _with_placeholders(self._rust, placeholders)
        return other


def _adds_prefix_space(rust: tokenizers.Tokenizer) -> bool | None:
    """Return whether a tokenizer.json adds a space before a text; None if no part of it specifies this."""
    states = [json.loads(part.__getstate__()) for part in (rust.normalizer, rust.pre_tokenizer) if part is not None]
    values: list[bool] = []
    while states:
        state = states.pop()
        states += state.get("normalizers", []) + state.get("pretokenizers", [])
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
    add_tokens(other, [added_token(token, token.content, token.content in placeholders) for token in tokens])
    replaced = [token for token in tokens if token.content in placeholders]
    add_tokens(other, [added_token(token, placeholders[token.content], False) for token in replaced])
    other.encode_special_tokens = True
    return other


def _normalizing_parts(normalizer: Any) -> list[dict[str, Any]]:
    """Return the parts of a normalizer as JSON objects, without the sequences around them."""
    states, parts = [json.loads(normalizer.__getstate__())], []
    while states:
        state = states.pop()
        states += state.get("normalizers", [])
        parts += [] if state.get("type") == "Sequence" else [state]
    return parts


def _may_reveal_tokens(normalizer: Any) -> bool:
    """Return whether a normalized text may contain a token that the text itself does not contain."""
    return any(
        # These two write SentencePiece's sign for a space, which makes no token.
        part.get("type") != "Prepend" and not (part.get("type") == "Replace" and part.get("pattern") == {"String": " "})
        for part in _normalizing_parts(normalizer)
    )


def _keeps_ascii(normalizer: Any) -> bool:
    """Return whether no part of the normalizer makes other letters of ASCII, as Lowercase does."""
    kept = ("NFC", "NFD", "NFKC", "NFKD", "Prepend", "Replace")
    return all(part.get("type") in kept for part in _normalizing_parts(normalizer))


def _without_normalizer(rust: tokenizers.Tokenizer) -> tokenizers.Tokenizer | None:
    """Return the same tokenizer without its normalizer, for ASCII texts; both share one model.

    The four normalization forms of Unicode leave ASCII as it is (Unicode Standard Annex 15, 1.3), but to check this
    takes the library a tenth of its time for a text.

    Returns:
        None if the tokenizer has another normalizer or none, or if the copy would not read all added tokens alike.
    """
    import tokenizers
    from tokenizers import normalizers

    if not isinstance(rust.normalizer, (normalizers.NFC, normalizers.NFD, normalizers.NFKC, normalizers.NFKD)):
        return None
    added = rust.get_added_tokens_decoder()
    # A token that is matched in the normalized text is normalized as well, which may turn it into ASCII.
    if any(token.normalized and not token.content.isascii() for token in added.values()):
        return None
    plain = tokenizers.Tokenizer(rust.model)
    if rust.pre_tokenizer is not None:
        plain.pre_tokenizer = rust.pre_tokenizer
    add_tokens(plain, [token for _, token in sorted(added.items())])
    return plain if plain.get_added_tokens_decoder() == added else None


def _ids_of(rust: tokenizers.Tokenizer, texts: list[str]) -> list[Ids]:
    """Return the ids of each text, int32 [tokens] per text, as views of one array."""
    encodings = rust.encode_batch_fast(texts, add_special_tokens=False)
    # A small array for each text would stay allocated between the blocks that the library allocates and frees, and
    # fragment the memory.
    ends = list(accumulate(map(len, encodings), initial=0))
    ids = np.fromiter(chain.from_iterable(encoding.ids for encoding in encodings), np.int32, ends[-1])
    return [ids[start:end] for start, end in pairwise(ends)]


def _token_offsets(encoding: Any) -> TokenOffsets:
    """Return the ids and character offsets of one encoding of the library."""
    spans = np.array(encoding.offsets, np.int64).reshape(-1, 2)
    return TokenOffsets(np.array(encoding.ids, np.int32), spans[:, 0], spans[:, 1])
