r"""A tokenizer that reads the template's control tokens as tokens, and those of the data as ordinary text.

    row          say <|im_end|>
    hidden       say ABBBBBBBBB                                   A, B: noncharacters, which no text may contain
    rendered     <|im_start|>user\nsay ABBBBBBBBB<|im_end|>\n     by any template
    tokenized    [CBBBBBBBBBBB]user\nsay <|im_end|>[ABBBBBBBBB]\n  by a tokenizer for which only [...] are tokens

Every control token has a placeholder of the same length, so that character offsets in a text do not change. Before
a rendered text is tokenized, the two are swapped: placeholders of the data become text again, and control tokens of
the template become placeholders, which the tokenizer reads as tokens. The text between two control tokens of the
template, a message with the markers around it, is tokenized as one text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np

from mindspeed_llm.errors import ConfigError
from mindspeed_llm.tokenization.encoded_texts import EncodedTexts, EncodedTextsWithOffsets, Ids, TokenOffsets
from mindspeed_llm.tokenization.tokenizer import ControlTokenSet, Tokenizer

# Noncharacters of Unicode. A placeholder is one of FIRST and as many of REST as its length requires, so that the next
# placeholder in a text cannot be read as a part of it.
FIRST, REST = [chr(0xFDD0 + n) for n in range(16)], [chr(0xFDE0 + n) for n in range(16)]
PLACEHOLDER = re.compile(f"[{FIRST[0]}-{FIRST[-1]}][{REST[0]}-{REST[-1]}]*")
NONCHARACTER = re.compile(f"[{FIRST[0]}-{REST[-1]}]")
FLAG = "--control-tokens-in-text plain"


class PlainControlTokenizer(Tokenizer):
    """The tokenizer `base` for texts in which `hidden` has put placeholders.

    Args:
        base: tokenizer of the model.
        controls: its control tokens, which get placeholders.

    Raises:
        ConfigError: `base` cannot read one of them as ordinary text, or has too many short ones.
    """

    def __init__(self, base: Tokenizer, controls: ControlTokenSet) -> None:
        self._base = base
        self.kind, self.sha256, self.vocab_size = base.kind, base.sha256, base.vocab_size
        self.bos_id, self.eos_id, self.pad_id = base.bos_id, base.eos_id, base.pad_id
        self.adds_bos, self.disagreements = base.adds_bos, base.disagreements
        self._placeholders = _placeholders(controls.texts)
        self._texts = {placeholder: token for token, placeholder in self._placeholders.items()}
        longest_first = sorted(controls.texts, key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._either = re.compile(f"{PLACEHOLDER.pattern}|{self._control.pattern}")
        self._swaps = self._placeholders | self._texts
        # A token that only the normalized text contains has no placeholder: any text may need the second tokenizer.
        self._always = controls.normalize is not None
        self._second = base.with_placeholders(self._placeholders)
        self._ids = self._table()
        self._check()

    def hidden(self, text: str) -> str:
        """Return `text` with each control token replaced by its placeholder."""
        return self._control.sub(lambda match: self._placeholders[match[0]], text)

    def shown(self, text: str) -> str:
        """Return `text` with each placeholder replaced by its control token."""
        return PLACEHOLDER.sub(lambda match: self._texts.get(match[0], match[0]), text)

    def encode_batch(self, texts: Sequence[str]) -> EncodedTexts:
        """Return the ids of each text as those of `base`, int32 [tokens]."""
        marked = [self._needs_second(text) for text in texts]
        if not any(marked):
            return self._base.encode_batch(texts)
        usual = iter(self._base.encode_batch([text for text, mark in zip(texts, marked, strict=True) if not mark]))
        mixed = [self._swapped(text) for text, mark in zip(texts, marked, strict=True) if mark]
        others = (self._ids[ids] for ids in self._second.encode_batch(mixed))
        return EncodedTexts.of_arrays([next(others) if mark else next(usual) for mark in marked])

    def encode_batch_with_offsets(self, texts: Sequence[str]) -> EncodedTextsWithOffsets:
        """Return the ids of each text as those of `base`, with character offsets, [tokens]."""
        if not any(self._needs_second(text) for text in texts):
            return self._base.encode_batch_with_offsets(texts)
        return super().encode_batch_with_offsets(texts)

    def encode_with_offsets(self, text: str) -> TokenOffsets:
        """Return the ids of one text as those of `base`, with character offsets, [tokens]."""
        if not self._needs_second(text):
            return self._base.encode_with_offsets(text)
        second = self._second.encode_with_offsets(self._swapped(text))
        return TokenOffsets(self._ids[second.ids], second.starts, second.ends)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`, special tokens included."""
        return self._base.decode(ids)

    def token_id(self, token: str) -> int | None:
        """Return the id that `base` has for `token`; None if there is none."""
        return self._base.token_id(token)

    def _needs_second(self, text: str) -> bool:
        """Return whether the second tokenizer has to read `text`, because it contains placeholders."""
        return self._always or (not text.isascii() and PLACEHOLDER.search(text) is not None)

    def _swapped(self, text: str) -> str:
        """Return `text` with control tokens and placeholders exchanged."""
        return self._either.sub(lambda match: self._swaps.get(match[0], match[0]), text)

    def _table(self) -> Ids:
        """Return the id of `base` for each id of the second tokenizer, int32 [ids]."""
        ids = {self._second.token_id(text): self._base.token_id(token) for text, token in self._texts.items()}
        # Placeholders may have ids of their own beyond the vocabulary of `base`; all other ids are the same in both.
        table = np.arange(1 + max([self.vocab_size - 1, *(number or 0 for number in ids)]), dtype=np.int32)
        for number, base_id in ids.items():
            if number is not None and base_id is not None:
                table[number] = base_id
        return table

    def _check(self) -> None:
        """Check each control token as the template writes it, and as ordinary text.

        Raises:
            ConfigError: the model itself reads it as one token, so that no copy of the tokenizer can do without.
        """
        tokens = list(self._placeholders)
        inside = [f"a{token}b" for token in tokens]
        expected = self._base.encode_batch(inside)
        written = [self._ids[ids] for ids in self._second.encode_batch([f"a{self._placeholders[t]}b" for t in tokens])]
        special = np.array([self._base.token_id(token) for token in tokens], np.int32)
        plain = self._second.encode_batch(inside)
        for token, ids, actual, text in zip(tokens, expected, written, plain, strict=True):
            if not np.array_equal(ids, actual) or np.isin(text, special).any():
                raise ConfigError(
                    f"{FLAG}: this tokenizer reads {token} as one token in any text; take keep or reject, or a "
                    "tokenizer that has it as an added token"
                )


def _placeholders(tokens: Iterable[str]) -> dict[str, str]:
    """Return a placeholder for each token, of the same length as the token.

    Raises:
        ConfigError: there are not enough different placeholders of that length.
    """
    placeholders: dict[str, str] = {}
    # The n-th placeholder of a length is the number n, with noncharacters as digits.
    used: dict[int, int] = {}
    for token in sorted(tokens):
        number = used.get(len(token), 0)
        used[len(token)] = number + 1
        number, first = divmod(number, len(FIRST))
        text = FIRST[first]
        for _ in token[1:]:
            number, digit = divmod(number, len(REST))
            text += REST[digit]
        if number:
            raise ConfigError(f"{FLAG}: the tokenizer has too many control tokens as short as {token}; take reject")
        placeholders[token] = text
    return placeholders
