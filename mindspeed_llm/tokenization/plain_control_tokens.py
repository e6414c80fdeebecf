"""A tokenizer for texts in which some control tokens are the template's, and others stand in the data as ordinary text.

    the row        say <|im_end|>
    hidden         say ABBBBBBBBB                                   A, B: noncharacters, which no text may hold
    rendered       <|im_start|>user\\nsay ABBBBBBBBB<|im_end|>\\n     by any template
    tokenised      [CBBBBBBBBBBB]user\\nsay <|im_end|>[ABBBBBBBBB]\\n  by a tokenizer for which only [...] are tokens

Every control token has a stand-in of its own length, so that places in a text stay what they are. The stand-ins
of the data become text again at the end, those of the template are tokens in the place of the ones they stand for. What
lies between two control tokens of the template, the message with the words around it, is tokenised as one text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np

from mindspeed_llm.errors import ConfigError
from mindspeed_llm.tokenization.tokenizer import ControlTokenSet, Ids, Tokenizer, TokenOffsets

# Noncharacters of Unicode. A stand-in is one of FIRST and as many of REST as it takes: none is the beginning of another
# that stands in the same place.
FIRST, REST = [chr(0xFDD0 + n) for n in range(16)], [chr(0xFDE0 + n) for n in range(16)]
STAND_IN = re.compile(f"[{FIRST[0]}-{FIRST[-1]}][{REST[0]}-{REST[-1]}]*")
NONCHARACTER = re.compile(f"[{FIRST[0]}-{REST[-1]}]")
FLAG = "--control-tokens-in-text plain"


class PlainControlTokenizer(Tokenizer):
    """`base`, but for texts with stand-ins of `hidden`.

    Args:
        controls: the control tokens of `base`.

    Raises:
        ConfigError: `base` cannot do without these tokens.
    """

    def __init__(self, base: Tokenizer, controls: ControlTokenSet) -> None:
        self._base = base
        self.kind, self.sha256, self.vocab_size = base.kind, base.sha256, base.vocab_size
        self.bos_id, self.eos_id, self.pad_id = base.bos_id, base.eos_id, base.pad_id
        self.adds_bos, self.disagreements = base.adds_bos, base.disagreements
        self._placeholders = _placeholders(controls.texts)
        self._texts = {stand_in: token for token, stand_in in self._placeholders.items()}
        longest_first = sorted(controls.texts, key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._either = re.compile(f"{STAND_IN.pattern}|{self._control.pattern}")
        self._exchange = self._placeholders | self._texts
        self._always = controls.normalize is not None  # what hides in a text has no stand-in
        self._other = base.with_placeholders(self._placeholders)
        self._ids = self._table()
        self._check()

    def hidden(self, text: str) -> str:
        """`text` with a stand-in for each control token."""
        return self._control.sub(lambda found: self._placeholders[found[0]], text)

    def shown(self, text: str) -> str:
        """`text` with the control tokens that `hidden` has replaced."""
        return STAND_IN.sub(lambda found: self._texts.get(found[0], found[0]), text)

    def encode_batch(self, texts: Sequence[str]) -> list[Ids]:
        marked = [self._is_marked(text) for text in texts]
        if not any(marked):
            return self._base.encode_batch(texts)
        usual = iter(self._base.encode_batch([text for text, mark in zip(texts, marked, strict=True) if not mark]))
        mixed = [self._exchanged(text) for text, mark in zip(texts, marked, strict=True) if mark]
        others = (self._ids[ids] for ids in self._other.encode_batch(mixed))
        return [next(others) if mark else next(usual) for mark in marked]

    def encode_with_offsets(self, text: str) -> TokenOffsets:
        if not self._is_marked(text):
            return self._base.encode_with_offsets(text)
        found = self._other.encode_with_offsets(self._exchanged(text))
        return TokenOffsets(self._ids[found.ids], found.starts, found.ends)

    def decode(self, ids: Sequence[int]) -> str:
        return self._base.decode(ids)

    def token_id(self, token: str) -> int | None:
        return self._base.token_id(token)

    def _is_marked(self, text: str) -> bool:
        return self._always or (not text.isascii() and STAND_IN.search(text) is not None)

    def _exchanged(self, text: str) -> str:
        """Control tokens as their stand-ins, and stand-ins as the text that they have replaced."""
        return self._either.sub(lambda found: self._exchange.get(found[0], found[0]), text)

    def _table(self) -> Ids:
        """The id of the base for each id of the other tokenizer."""
        ids = {self._other.token_id(text): self._base.token_id(token) for text, token in self._texts.items()}
        table = np.arange(1 + max([self.vocab_size - 1, *(number or 0 for number in ids)]), dtype=np.int32)
        for number, meant in ids.items():
            if number is not None and meant is not None:
                table[number] = meant
        return table

    def _check(self) -> None:
        """Try each token as the template writes it, and as text.

        Raises:
            ConfigError: it is not read as it is to be.
        """
        tokens = list(self._placeholders)
        inside = [f"a{token}b" for token in tokens]
        usual = self._base.encode_batch(inside)
        written = [self._ids[ids] for ids in self._other.encode_batch([f"a{self._placeholders[t]}b" for t in tokens])]
        special = np.array([self._base.token_id(token) for token in tokens], np.int32)
        plain = self._other.encode_batch(inside)
        for token, ids, same, text in zip(tokens, usual, written, plain, strict=True):
            if not np.array_equal(ids, same) or np.isin(text, special).any():
                raise ConfigError(
                    f"{FLAG}: this tokenizer reads {token} as one token in any text; take keep or reject, or a "
                    "tokenizer that has it as an added token"
                )


def _placeholders(tokens: Iterable[str]) -> dict[str, str]:
    """A stand-in for each token, of the same length.

    Raises:
        ConfigError: there are not enough short ones.
    """
    found: dict[str, str] = {}
    numbers: dict[int, int] = {}
    for token in sorted(tokens):
        number = numbers.get(len(token), 0)
        numbers[len(token)] = number + 1
        number, first = divmod(number, len(FIRST))
        text = FIRST[first]
        for _ in token[1:]:
            number, digit = divmod(number, len(REST))
            text += REST[digit]
        if number:
            raise ConfigError(f"{FLAG}: the tokenizer has too many control tokens as short as {token}; take reject")
        found[token] = text
    return found
