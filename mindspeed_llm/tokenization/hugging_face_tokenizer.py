"""A folder with tokenizer.json, through the Rust library `tokenizers`."""

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

# Few enough that what the library allocates for them (a string for each token) stays in the processor's caches.
TEXTS_AT_ONCE = 100


class HuggingFaceTokenizer(Tokenizer):
    """tokenizer.json as it is, with the tokens that other files of its folder add.

    Args:
        path: the tokenizer.json.
    """

    def __init__(self, path: Path, special: SpecialTokens) -> None:
        # Threads of the caller, not the library's own: those take a sixth more processor time, as what one thread of
        # them has allocated another frees. The variable is the only way to tell it.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        try:
            content = path.read_bytes()
            self._rust, last_id = read_tokenizer(content)
        except Exception as error:  # the library raises plain Exception for a file that it cannot read
            raise ConfigError(
                f"--tokenizer-name-or-path: {path} cannot be read ({error}); download it again"
            ) from error
        self._rust.no_truncation()
        self._rust.no_padding()
        self.kind = "PretrainedFromHF"
        self.sha256 = sha256_of(content)
        self._add(special, path)
        self._check_prefix_space(special, path)
        self.vocab_size = 1 + max([last_id, *self._rust.get_added_tokens_decoder()])
        self.bos_id = self._id_of(special.begin)
        self.eos_id = self._id_of(special.end)
        pad = self._id_of(special.pad)
        self.pad_id = self.eos_id if pad is None else pad
        self.adds_bos = self.bos_id is not None and self._adds_bos(special)
        self.disagreements = special.disagreements
        self._for_ascii = _without_normalizer(self._rust) or self._rust

    def _add(self, special: SpecialTokens, path: Path) -> None:
        """Tokens that other files of the folder add to those of tokenizer.json, some of them at ids that they name.

        Raises:
            ConfigError: another file puts a token at an id that it does not get.
        """
        import tokenizers

        entries = [entry for _, entry in sorted(special.added.items())] + list(special.listed)
        present = {token.content for token in self._rust.get_added_tokens_decoder().values()}
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
                    f"--tokenizer-name-or-path: {path.parent}: {declared} puts {content} at {number}, "
                    f"tokenizer.json at {self._rust.token_to_id(content)}; take both from one download"
                )

    def _check_prefix_space(self, special: SpecialTokens, path: Path) -> None:
        """Refuse a folder whose files disagree about a space before each text; versions of transformers do so too.

        Raises:
            ConfigError: they disagree.
        """
        asked, written = special.settings.get("add_prefix_space"), _adds_prefix_space(self._rust)
        if isinstance(asked, bool) and written is not None and asked != written:
            raise ConfigError(
                f"--tokenizer-name-or-path: {path.parent}: add_prefix_space is {json.dumps(asked)} in "
                f"tokenizer_config.json and {json.dumps(written)} in tokenizer.json; take both from one download, or "
                "correct the one that is wrong"
            )

    def _id_of(self, token: str | int | None) -> int | None:
        if isinstance(token, int):
            return token if self._rust.id_to_token(token) is not None else None
        return None if token is None else self._rust.token_to_id(token)

    def _adds_bos(self, special: SpecialTokens) -> bool:
        """As transformers: the Llama class asks its settings, other classes the post-processor of tokenizer.json."""
        asked = special.settings.get("add_bos_token")
        if str(special.settings.get("tokenizer_class", "")).startswith("Llama"):
            return asked is not False
        return bool(asked) or self._rust.encode("x").ids[:1] == [self.bos_id]

    def encode_batch(self, texts: Sequence[str]) -> list[Ids]:
        found: list[Ids] = [np.zeros(0, np.int32)] * len(texts)
        ascii_ones = [number for number, text in enumerate(texts) if text.isascii()]
        others = [number for number, text in enumerate(texts) if not text.isascii()]
        for rust, numbers in ((self._for_ascii, ascii_ones), (self._rust, others)):
            for start in range(0, len(numbers), TEXTS_AT_ONCE):
                some = numbers[start : start + TEXTS_AT_ONCE]
                for number, ids in zip(some, _ids_of(rust, [texts[number] for number in some]), strict=True):
                    found[number] = ids
        return found

    def encode_with_offsets(self, text: str) -> TokenOffsets:
        return _places(self._rust.encode(text, add_special_tokens=False))

    def encode_batch_with_offsets(self, texts: Sequence[str]) -> list[TokenOffsets]:
        return [_places(encoding) for encoding in self._rust.encode_batch(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        return self._rust.decode([int(number) for number in ids], skip_special_tokens=False)

    def token_id(self, token: str) -> int | None:
        return self._rust.token_to_id(token)

    def controls(self, named: Iterable[str] = ()) -> ControlTokenSet:
        wanted = set(named)
        added = self._rust.get_added_tokens_decoder().values()
        tokens = [token for token in added if token.special or token.content in wanted]
        normalizer = self._rust.normalizer
        hides = normalizer is not None and any(token.normalized for token in tokens) and _may_hide(normalizer)
        normalize = normalizer.normalize_str if hides else None
        return ControlTokenSet(
            frozenset(token.content for token in tokens), normalize, hides and not _keeps_ascii(normalizer)
        )

    def with_placeholders(self, placeholders: Mapping[str, str]) -> HuggingFaceTokenizer:
        other = copy.copy(self)
        other._rust = other._for_ascii = _with_placeholders(self._rust, placeholders)
        return other


def _adds_prefix_space(rust: tokenizers.Tokenizer) -> bool | None:
    """Whether a tokenizer.json puts a space before a text; None if nothing in it says so either way."""
    states = [json.loads(part.__getstate__()) for part in (rust.normalizer, rust.pre_tokenizer) if part is not None]
    found: list[bool] = []
    while states:
        state = states.pop()
        states += state.get("normalizers", []) + state.get("pretokenizers", [])
        if state.get("type") == "Prepend":
            found.append(True)
        elif state.get("type") == "Metaspace":
            found.append(state.get("prepend_scheme", "always") != "never")
        elif state.get("type") == "ByteLevel":
            found.append(bool(state.get("add_prefix_space")))
    return any(found) if found else None


def _with_placeholders(rust: tokenizers.Tokenizer, placeholders: Mapping[str, str]) -> tokenizers.Tokenizer:
    """Return a copy that looks for the values of `placeholders` in place of the keys; both share one model."""
    import tokenizers

    other = tokenizers.Tokenizer(rust.model)
    for part in ("normalizer", "pre_tokenizer", "post_processor"):
        if (value := getattr(rust, part)) is not None:
            setattr(other, part, value)
    tokens = [token for _, token in sorted(rust.get_added_tokens_decoder().items())]

    def written(token: tokenizers.AddedToken, text: str, special: bool) -> tokenizers.AddedToken:
        flags = {name: getattr(token, name) for name in ("single_word", "lstrip", "rstrip", "normalized")}
        return tokenizers.AddedToken(text, special=special, **flags)

    # All keep their ids. Special ones are not looked for, as the last line says: so the keys are, and no others.
    add_tokens(other, [written(token, token.content, token.content in placeholders) for token in tokens])
    replaced = [token for token in tokens if token.content in placeholders]
    add_tokens(other, [written(token, placeholders[token.content], False) for token in replaced])
    other.encode_special_tokens = True
    return other


def _normalizing_parts(normalizer: Any) -> list[dict[str, Any]]:
    """The parts of a normalizer, as JSON describes them."""
    states, found = [json.loads(normalizer.__getstate__())], []
    while states:
        state = states.pop()
        states += state.get("normalizers", [])
        found += [] if state.get("type") == "Sequence" else [state]
    return found


def _may_hide(normalizer: Any) -> bool:
    """Whether a text may hold a token in its normalized form alone. SentencePiece's sign for a space makes none."""
    return any(
        part.get("type") != "Prepend" and not (part.get("type") == "Replace" and part.get("pattern") == {"String": " "})
        for part in _normalizing_parts(normalizer)
    )


def _keeps_ascii(normalizer: Any) -> bool:
    """Whether it makes no other letters of ASCII."""
    kept = ("NFC", "NFD", "NFKC", "NFKD", "Prepend", "Replace")
    return all(part.get("type") in kept for part in _normalizing_parts(normalizer))


def _without_normalizer(rust: tokenizers.Tokenizer) -> tokenizers.Tokenizer | None:
    """The same tokenizer for texts that are ASCII, where all that its normalizer does is one of Unicode's four forms.

    Each of them leaves ASCII as it is (Unicode Standard Annex 15, 1.3), and to find that out takes the library a tenth
    of the time that it needs for a text. The two share one model. None if there is nothing to leave out.
    """
    import tokenizers
    from tokenizers import normalizers

    if not isinstance(rust.normalizer, (normalizers.NFC, normalizers.NFD, normalizers.NFKC, normalizers.NFKD)):
        return None
    added = rust.get_added_tokens_decoder()
    # A token that is looked for in the normalized text is normalized as well, and may become ASCII by that.
    if any(token.normalized and not token.content.isascii() for token in added.values()):
        return None
    plain = tokenizers.Tokenizer(rust.model)
    if rust.pre_tokenizer is not None:
        plain.pre_tokenizer = rust.pre_tokenizer
    add_tokens(plain, [token for _, token in sorted(added.items())])
    return plain if plain.get_added_tokens_decoder() == added else None


def _ids_of(rust: tokenizers.Tokenizer, texts: list[str]) -> list[Ids]:
    """The ids of each text, as parts of one array: a small block for each would lie, as long as it is needed, between
    those that the library allocates and frees, and keep them apart."""
    encodings = rust.encode_batch_fast(texts, add_special_tokens=False)
    ends = list(accumulate(map(len, encodings), initial=0))
    ids = np.fromiter(chain.from_iterable(encoding.ids for encoding in encodings), np.int32, ends[-1])
    return [ids[start:end] for start, end in pairwise(ends)]


def _places(encoding: Any) -> TokenOffsets:
    spans = np.array(encoding.offsets, np.int64).reshape(-1, 2)
    return TokenOffsets(np.array(encoding.ids, np.int32), spans[:, 0], spans[:, 1])
