"""Texts that tokenizer libraries are likely to encode differently: those on which the two libraries are compared.

The words cover each branch of the patterns by which GPT-2, Qwen2, Llama 3 and o200k divide a text, each kind of white
space, the normalization forms of Unicode, and the limits of characters, bytes and runs.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence

CONTRACTIONS = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'x", "'", "\u2019s", "\u2019ll")
WORDS = (
    "word", "Word", "WORD", "camelCaseWord", "HTTPServer", "iPhone", "McDonald", "naïve", "straße", "ŉoel", "Ǆungla",
    "ǅungla", "ʰmod", "ªº", "слово", "СЛОВО", "λόγος", "ΛΌΓΟΣ", "שלום", "مرحبا", "हिन्दी", "தமிழ்", "ไทย", "日本語",
    "中文字", "カタカナ", "ｶﾞ", "한국어", "Ꭰꭰ", "𐐀𐐨", "𠮷野家", "𝒜𝓫", "antidisestablishmentarianism",
)  # fmt: skip
NUMBERS = (
    "1", "12", "123", "1234", "12345", "1234567890123", "3.14", "1,000,000.00", "0x1F", "1e-5", "v1.2.3", "½", "²³",
    "Ⅷ", "٣٤٥", "१२३", "１２３", "𝟙𝟚", "①②", "㊿", "1st", "A1b2", "2024-01-31", "10:30", "一二三",
)  # fmt: skip
PUNCTUATION = (
    ".", "...", "!?", "?!\n", "();", "();\n\n", "{}\r\n", "//", "// x", "/*\n*/", "--", "—", "\u2013\u2014", "“q”",
    "«»", "_", "__init__", "a_b", "#1", "$5", "€9", "@x", "\\n", "\\", "`code`", "```\ncode\n```", "<a>", "</a>",
    "<|", "|>", "<|im_", "<|im_start", "im_start|>", "<<|im_start|>>", "[INST]", "[/INST", "<s", "s>", "<0x0A>",
    "<0xFF>", "<unk>", "§¶", "©®™", "°", "+=", "!=", "→", "∑∞", "http://x.y/?a=b&c=d#e", "a@b.co", "C:\\dir\\f.txt",
    "a/b/c", "-/\n", "?/\r",
)  # fmt: skip
SPACES = (
    " ", "\t", "\n", "\r", "\r\n", "\v", "\f", "\x1c", "\x1d", "\x1e", "\x1f", "\x85", "\xa0", "\u1680", "\u180e",
    "\u2000", "\u2003", "\u2007", "\u2009", "\u200a", "\u2028", "\u2029", "\u202f", "\u205f", "\u3000",
)  # fmt: skip
SPACE_RUNS = (
    "  ", "   ", "    ", "\t\t", "\n\n", "\n\n\n", " \n", "\n ", " \n ", "\n \n", "  \n\n  ", "\r\n\r\n", "\t \n\t",
    "\n\t", " \t", "\t ", " \r", "\r ", "\xa0 ", " \xa0", "\u3000 ", " \u3000\n", "\n\u2028\n", " \x85 ", "\x1c \x1c",
    "\v\f",
)  # fmt: skip
INVISIBLE = (
    "\u00ad", "\u034f", "\u061c", "\u115f", "\u1160", "\u17b4", "\u200b", "\u200c", "\u200d", "\u200e", "\u200f",
    "\u202a", "\u202c", "\u202e", "\u2060", "\u2061", "\u2066", "\u2069", "\u206f", "\u3164", "\ufe00", "\ufe0e",
    "\ufe0f", "\ufeff", "\uffa0", "\ufff9", "\ufffb", "\ufffc", "\ufffd", "\U000e0001", "\U000e0020", "\U000e007f",
    "\U000e0100",
)  # fmt: skip
# Pairs and sequences of which at least one changes under NFC, NFD, NFKC or NFKD, or must not.
NORMALIZED = (
    "é", "e\u0301", "ệ", "e\u0323\u0302", "e\u0302\u0323", "ê\u0323", "Å", "\u212b", "A\u030a", "\u2126", "\u212a",
    "\u1e9b\u0323", "ﬁ", "ﬃ", "ĳ", "ǆ", "ſ", "½", "x²", "™", "℃", "㎏", "㍿", "ｱｲｳ", "Ａｂｃ", "\uff5e", "\u301c", "…",
    "‥", "한", "\u1112\u1161\u11ab", "\u1112\u1161", "하\u11ab", "하\u11a7", "\u1112\u1161\u11a7", "\u1100\u1100",
    "\u11ab\u11ab", "\u0958", "\u0915\u093c", "\u09dc", "\u0f43", "\u0f42\u0fb7", "\ufb1d", "\u05d9\u05b4", "\u2adc",
    "\u2add\u0338", "\u0344", "\u0308\u0301", "\u0340", "\u0341", "\u0343", "\u0374", "\u037e", "\u0387", "\u1fef",
    "\u2000", "\u2001", "\u2329", "\u232a", "\uf900", "\uf951", "\ufa10", "\ufa2d", "\U0002f800", "\U0002fa1d",
    "\U0001d15e", "\U0001d1c0", "a\u0315\u0300\u05ae\u0062", "a\u0300\u0315", "\u0cca\u0cd5", "\u0cc6\u0cc2\u0cd5",
    "\u0b47\u0b3e", "\u1025\u102e", "\u3099", "か\u3099", "が", "ｶ\uff9e", "\u0e33", "\u0e4d\u0e32", "\u0eb3", "\u0f77",
    "\u1e9e", "İ", "i\u0307", "ı", "\u03f4", "\u03c2", "\U00011099\U000110ba", "\U0001109a", "\U00011131\U00011127",
    "\U000114b9\U000114ba",
)  # fmt: skip
EMOJI = (
    "\U0001f642", "\U0001f642\U0001f642", "\U0001f44d\U0001f3fd",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466", "\U0001f3f3\ufe0f\u200d\U0001f308",
    "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f", "\U0001f1e9\U0001f1ea",
    "\U0001f1e9\U0001f1ea\U0001f1eb", "1\ufe0f\u20e3", "#\ufe0f\u20e3", "\u2764", "\u2764\ufe0f", "\u2764\ufe0e",
    "\u263a\ufe0f", "\u00a9\ufe0f", "\U0001f469\u200d", "\u200d\U0001f466", "\U0001f3fd",
    "\U0001f9d1\U0001f3ff\u200d\U0001f680", "\U0001fae0",
)  # fmt: skip
MARKS = ("\u0301", "\u0323", "\u0345", "\u0483", "\u0489", "\u05b0", "\u0651", "\u093f", "\u0e34", "\u20dd", "\u302a")
SENTENCE_PIECE = (
    "\u2581", "\u2581\u2581", "\u2581word", "word\u2581", " \u2581 ", "\u2581 \u2581word", "a\u2581b", "\n\u2581",
    "\u2581\n", "\u2582", "\u2580", "\u2587\u2581", "<0x20>", "<0xE2><0x96><0x81>", "\u2585",
)  # fmt: skip
# The first and last character of each length in UTF-8, private use, unassigned characters and noncharacters.
LIMITS = (
    "\x00", "\x01", "\x08", "\x0e", "\x1b[31m", "\x7f", "\x80", "\x9f", "\u0378", "\u07ff", "\u0800", "\ud7ff",
    "\ue000", "\uf8ff", "\ufdd0", "\ufdef", "\ufffe", "\uffff", "\U00010000", "\U0001ffff", "\U0002a6e0",
    "\U0003134f", "\U00040000", "\U000e0fff", "\U000f0000", "\U000ffffd", "\U00100000", "\U0010fffd", "\U0010ffff",
)  # fmt: skip
GROUPS = (
    CONTRACTIONS, WORDS, NUMBERS, PUNCTUATION, SPACES, SPACE_RUNS, INVISIBLE, NORMALIZED, EMOJI, MARKS,
    SENTENCE_PIECE, LIMITS,
)  # fmt: skip
RUN_UNITS = (
    "a", "Z", " ", "\n", "\t", "\r\n", "\xa0", "0", "=", "-", ".", "中", "é", "\u0301", "\U0001f642", "\u2581", "'s",
    "ab",
)  # fmt: skip
RUN_LENGTHS = (2, 3, 15, 16, 17, 255, 256, 4096)
LONGEST_RUN = 100_000
TOKENS_IN_DETAIL = 300  # some vocabularies have thousands of reserved tokens, all of one form
SENTENCES = (
    "I'm sure they'LL say it's the dog's, won't they? We'VE seen 'em; she'd've gone.",
    "  def f(x):\n\treturn x ** 2  # ok\n\n\nprint( f(3) )   \n",
    '{"a": [1, 2.50, null], "b": "c\\n\\u00e9"}\r\n',
    "| a | b |\n|---|:-:|\n| 1 | 2 |\n\n* x\n  * y\n1. z\n",
    "中文，和 English 混合123。「引用」……\n\u3000\u3000第二段",
    "عدد ١٢٣ و\u200fabc\u200f ثم עברית",
    "$$\\int_0^1 x^2\\,dx=\\frac{1}{3}$$ ≈ 0.333…",
)


def hard_strings(added_tokens: Sequence[str]) -> list[str]:
    """Return the hard strings, always the same ones for the same tokens; together about a million characters.

    Args:
        added_tokens: strings that the tokenizer reads as one token each.
    """
    texts = ["", *SENTENCES, *_words(), *_neighbours(), *_mark_sequences(), *_runs(), *_with_tokens(added_tokens)]
    return list(dict.fromkeys(texts))


def _words() -> Iterator[str]:
    """Yield each word of each group alone, and between other characters."""
    for group in GROUPS:
        for word in group:
            yield from (word, f" {word}", f"{word} ", f"a{word}b", f"1{word}2", f"({word})", f" {word}\n{word}  {word}")


def _neighbours() -> Iterator[str]:
    """Yield texts in which words of different groups follow each other."""
    for number, group in enumerate(GROUPS):
        for other in GROUPS[number:]:
            # Steps without a common divisor with the sizes of the groups meet more pairs than equal steps would.
            yield "".join(group[3 * n % len(group)] + other[7 * n % len(other)] for n in range(12))
            yield " ".join(other[5 * n % len(other)] + group[n % len(group)] for n in range(12))
    for space in (*SPACES, *SPACE_RUNS):
        for end in ("x", "1", ".", "\n", "", "é", "\u3000", "'s"):
            yield f"a{space}{end}"
    for word in WORDS:
        yield from (word + end for end in CONTRACTIONS)
        yield from (word + end.upper() for end in CONTRACTIONS)


def _mark_sequences() -> Iterator[str]:
    """Yield long sequences of combining marks, in the orders that normalization changes, and all four forms."""
    for count in (2, 3, 17, 40):
        for base in ("", "e", " ", "1", "中"):
            yield base + "".join(MARKS[n % len(MARKS)] for n in range(count))
            yield base + "".join(MARKS[-n % len(MARKS)] for n in range(count)) + "z"
    together = "".join(NORMALIZED)
    yield from (unicodedata.normalize(form, together) for form in ("NFC", "NFD", "NFKC", "NFKD"))


def _runs() -> Iterator[str]:
    """Yield runs of one character, from two to LONGEST_RUN long, and very long words and lines."""
    units = (
        "a",
        "Z",
        " ",
        "\n",
        "\t",
        "\r\n",
        "\xa0",
        "0",
        "=",
        "-",
        ".",
        "中",
        "é",
        "\u0301",
        "🙂",
        "\u2581",
        "'s",
        "ab",
    )
    for unit in units:
        yield from (unit * count for count in RUN_LENGTHS)
        yield from (f"x{unit * count}y" for count in (2, 17, 256))
    yield from (unit * (LONGEST_RUN // len(unit)) for unit in ("a", " ", "\n", "0", "=", "中", "\u0301"))
    yield "".join(WORDS) * 20
    yield "".join(chr(0x4E00 + n) for n in range(5000))
    yield "".join(chr(n) for n in range(0x250))


def _with_tokens(tokens: Sequence[str]) -> Iterator[str]:
    """Yield added tokens at the borders of a text, inside words, next to each other, broken and in other forms."""
    for number, token in enumerate(tokens):
        yield from (token, f"a{token}b", f" {token} {tokens[number - 1]}")
    for number, token in enumerate(tokens[:TOKENS_IN_DETAIL]):
        following, half = tokens[(number + 1) % len(tokens)], token[: len(token) // 2]
        yield from (
            f"{token}{token}", f"{token}{following}", f"  {token}  x", f"\n{token}\n", f"\t{token}\r\n {following}",
            f"user {token}\nsay{token}!{following}", f"{token}'s 12{token}345", f"\u2581{token}\u2581",
            f"\xa0{token}\u3000", f"{token}\u200d", f"{token}\u0301", f"e{token}\u0301", token[:-1], token[1:],
            f"{token[:-1]}{token}{token[1:]}", f"{half} {token}", f"{half}{token}", f"{token[:1]}{token}",
            token.upper(), token.swapcase(), token.replace("|", "\uff5c"),
            token.replace("<", "\uff1c").replace(">", "\uff1e"),
            *(unicodedata.normalize(form, f"\uff1c{token}e\u0301") for form in ("NFC", "NFD", "NFKC")),
        )  # fmt: skip
