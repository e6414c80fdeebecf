"""Random texts on which tokenizer libraries may differ: all planes of Unicode, white space, marks, added tokens."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Iterator, Sequence

# First and last code point of blocks whose characters occur together.
BLOCKS = (
    (0x20, 0x7E), (0xA0, 0x24F), (0x250, 0x2FF), (0x370, 0x3FF), (0x400, 0x52F), (0x591, 0x5F4), (0x600, 0x6FF),
    (0x900, 0x97F), (0xB80, 0xBFF), (0xE01, 0xE5B), (0x1100, 0x11FF), (0x13A0, 0x13FF), (0x1E00, 0x1FFF),
    (0x2000, 0x206F), (0x2070, 0x218F), (0x2190, 0x23FF), (0x2500, 0x27BF), (0x3000, 0x30FF), (0x3200, 0x33FF),
    (0x4E00, 0x9FFF),
    (0xAC00, 0xD7A3), (0xF900, 0xFAFF), (0xFB00, 0xFDFF), (0xFE00, 0xFEFF), (0xFF00, 0xFFEF), (0x10400, 0x1044F),
    (0x1D400, 0x1D7FF), (0x1F1E6, 0x1F1FF), (0x1F300, 0x1FAFF), (0x20000, 0x2A6DF), (0x2F800, 0x2FA1D),
    (0xE0000, 0xE01EF),
)  # fmt: skip
MARKS = [chr(n) for n in range(0x110000) if not 0xD800 <= n < 0xE000 and unicodedata.category(chr(n)) in ("Mn", "Mc")]
SPACES = " \t\n\r\v\f\x1c\x1f\x85\xa0\u1680\u2003\u2009\u2028\u2029\u202f\u3000\u200b\ufeff\u2581"
PUNCTUATION = ".,;:!?()[]{}<>|\"'`-_=+*/\\#$%&@^~\u2026\u2014\u2019\u00ab\u3002\uff0c"
WORDS = (
    "the", "quick", "Brown", "foxes'", "jumped", "isn't", "she'll", "WE'VE", "I'm", "def", "return", "x_1", "camelCase",
    "naïve", "Straße", "Привет", "мир", "αβγ", "שלום", "مرحبا", "हिन्दी", "ไทย", "日本語", "中文", "한국어",
    "e\u0301te\u0301", "ﬃ", "½", "\ufdfa", "\U0001f469\u200d\U0001f467", "\U0001f3fd", "\u2764\ufe0f", '{"a":', "https://x.y/z?q=1",
    "<br/>", "\\n",
)  # fmt: skip
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


class TextGenerator:
    """Generator of random texts.

    Args:
        seed: seed of the random numbers.
        tokens: added tokens, which are inserted complete and broken.
    """

    def __init__(self, seed: int, tokens: Sequence[str]) -> None:
        self._draw = random.Random(seed)
        self._tokens = list(tokens) or ["<s>"]
        self._kinds = (
            self._word, self._word, self._ascii_word, self._spaces, self._spaces, self._digits, self._punctuation,
            self._block, self._block, self._marks, self._token, self._broken_token, self._control, self._any, self._run,
        )  # fmt: skip

    def texts(self, count: int) -> list[str]:
        """Return the next `count` texts."""
        return [self._text() for _ in range(count)]

    def chunks(self, count: int, size: int = 20_000) -> Iterator[list[str]]:
        """Yield `count` texts in lists of `size`."""
        for start in range(0, count, size):
            yield self.texts(min(size, count - start))

    def _text(self) -> str:
        draw = self._draw
        kinds = draw.choices(self._kinds, k=int(draw.expovariate(0.15)))
        separator = draw.choice(("", "", " ", " ", "  ", "\n"))
        return separator.join([kind() for kind in kinds])

    def _word(self) -> str:
        return self._draw.choice(WORDS)

    def _ascii_word(self) -> str:
        return "".join(self._draw.choices(LETTERS, k=self._draw.randint(1, 12)))

    def _spaces(self) -> str:
        draw = self._draw
        return "".join(draw.choices(SPACES if draw.random() < 0.5 else " \n", k=draw.randint(1, 5)))

    def _digits(self) -> str:
        draw = self._draw
        zero = draw.choice((0x30, 0x30, 0x30, 0x660, 0x966, 0xFF10, 0x1D7CE))
        return "".join(chr(zero + draw.randrange(10)) for _ in range(draw.randint(1, 8)))

    def _punctuation(self) -> str:
        return "".join(self._draw.choices(PUNCTUATION, k=self._draw.randint(1, 4)))

    def _block(self) -> str:
        first, last = self._draw.choice(BLOCKS)
        return "".join(chr(self._draw.randint(first, last)) for _ in range(self._draw.randint(1, 6)))

    def _marks(self) -> str:
        draw = self._draw
        return draw.choice(("", "e", "o", "か", "1")) + "".join(draw.choices(MARKS, k=draw.randint(1, 5)))

    def _token(self) -> str:
        return self._draw.choice(self._tokens)

    def _broken_token(self) -> str:
        draw = self._draw
        token, cut = draw.choice(self._tokens), draw.randint(0, 6)
        return draw.choice(
            (token[:cut], token[cut:], token[:cut] + " " + token[cut:], token.upper(), token[:cut] + token)
        )

    def _control(self) -> str:
        return chr(self._draw.choice((self._draw.randrange(0x20), self._draw.randrange(0x7F, 0xA0))))

    def _any(self) -> str:
        code = self._draw.randrange(0x110000 - 0x800)
        return chr(code if code < 0xD800 else code + 0x800)

    def _run(self) -> str:
        draw = self._draw
        return draw.choice((" ", "\n", "a", "0", "=", "中", "\u0301", "\u2581", "!")) * draw.choice(
            (2, 3, 4, 8, 16, 17, 40)
        )
