"""Synthetic instruction data for benchmarks, reproducible from a seed and realistic for a tokenizer.

Word frequencies follow Zipf's law. Frequent words are English; rare words are composed of syllables, so that a real
vocabulary splits them like names and other rare words. The text has punctuation, numbers, lists, some code and some
Chinese. The lengths are skewed as in public instruction data: Alpaca-like rows of about 170 tokens with Qwen's
template, and ShareGPT-like conversations of two to ten messages.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

FREQUENT = (
    "the of and to a in is that for it as was with be by on not he his but at are this have from or had an they "
    "which one you were all her she there would their we him been has when who will more no if out so said what up "
    "its about into than them can only other new some could time these two may then do first any my now such like our "
    "over man me even most made after also did many before must through years where much your way well down should "
    "because each just those people how too little state good very make world still own see men work long get here "
    "between both life being under never day same another know while last might us great old year off come since "
    "against go came right used take three states himself few house use during without again place around however "
    "home small found thought went say part once general high upon school every does got united left number course "
    "war until always away something fact though water less public put think almost hand enough far took head yet "
    "government system better set told nothing night end why called eyes find going look asked later point knew next "
    "city business give group toward young days let room president side social given present several order national "
    "possible rather second face per among form important often things looked early white case large need big four "
    "explain describe list write example function value result answer question sentence summary language model data "
    "input output method class return string table column energy climate health market history music river mountain"
)
ONSETS = "b br c ch cl d dr f fl g gr h j k l m n p pl pr qu r s sh sl st str t th tr v w z"
VOWELS = "a e i o u ai ea ee ie oa ou"
CODAS = ["", "", "", "n", "r", "s", "t", "l", "m", "nd", "st", "ck", "ng", "x"]
ENDINGS = ["", "", "", "s", "ed", "ing", "ly", "tion", "er", "ment", "ness"]
CHINESE = "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年过发后作里"
CODE = "for item in values:\n    total += item * {0}\n    print(total)\n"
RARE_WORDS = 40_000


class TextMaker:
    """Generator of synthetic text; the same seed gives the same text."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        rare = [self._rare_word() for _ in range(RARE_WORDS)]
        self.words = np.array([*dict.fromkeys([*FREQUENT.split(), *rare])], dtype=object)
        ranks = np.arange(1, len(self.words) + 1)
        # Zipf-Mandelbrot law: the frequency of a word falls with its rank as 1 / (rank + 2.7) ** 1.3.
        self.cumulative = np.cumsum(1 / (ranks + 2.7) ** 1.3)
        self.cumulative /= self.cumulative[-1]

    def _rare_word(self) -> str:
        pick = self.random.integers
        onsets, vowels = ONSETS.split(), VOWELS.split()
        word = "".join(
            onsets[pick(len(onsets))] + vowels[pick(len(vowels))] + CODAS[pick(len(CODAS))] for _ in range(pick(1, 3))
        )
        return word + ENDINGS[pick(len(ENDINGS))]

    def sentences(self, words: int) -> str:
        """Generate sentences with about `words` words in total."""
        drawn = self.words[np.searchsorted(self.cumulative, self.random.random(words))].tolist()
        marks = self.random.random(words)
        text: list[str] = []
        begin = True
        for word, mark in zip(drawn, marks.tolist(), strict=True):
            text.append(word.capitalize() if begin else word)
            begin = mark < 0.06
            if begin:
                text[-1] += ".\n\n" if mark < 0.006 else "."
            elif mark < 0.11:
                text[-1] += ","
            elif mark < 0.125:
                text[-1] = f"{int(mark * 1e6) % 2100}"
            elif mark < 0.13:
                text[-1] = f"({text[-1]})"
        return " ".join(text).rstrip(".\n ") + "."

    def message(self, words: int) -> str:
        """Generate a message of about `words` words: sentences, sometimes a list, code or Chinese text."""
        kind = self.random.random()
        if kind < 0.12 and words > 20:
            return "\n".join(f"{n}. {self.sentences(max(3, words // 5))}" for n in range(1, 6))
        if kind < 0.16:
            return f"{self.sentences(words)}\n\n```python\n{CODE.format(int(1e4 * kind))}```"
        if kind < 0.18:
            return "".join(CHINESE[n] for n in self.random.integers(0, len(CHINESE), words)) + "。"
        return self.sentences(words)

    def length(self, median: float, sigma: float, maximum: int) -> int:
        """Draw a number of words from a lognormal distribution, limited to 3 … `maximum`."""
        return int(np.clip(self.random.lognormal(np.log(median), sigma), 3, maximum))


def alpaca_rows(count: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Yield rows with instruction, input (empty in three of five rows) and output."""
    maker = TextMaker(seed)
    for _ in range(count):
        with_input = maker.random.random() < 0.4
        yield {
            "instruction": maker.sentences(maker.length(11, 0.4, 80)),
            "input": maker.message(maker.length(14, 0.9, 400)) if with_input else "",
            "output": maker.message(maker.length(55, 0.95, 1500)),
        }


def sharegpt_rows(count: int, seed: int = 1) -> Iterator[dict[str, Any]]:
    """Yield conversations with alternating messages of human and gpt."""
    maker = TextMaker(seed)
    for _ in range(count):
        messages = []
        for _ in range(int(maker.random.integers(1, 6))):
            messages.append({"from": "human", "value": maker.message(maker.length(24, 1.0, 2000))})
            messages.append({"from": "gpt", "value": maker.message(maker.length(120, 0.8, 2000))})
        yield {"conversations": messages}


def write_rows(path: Path, rows: Iterator[dict[str, Any]]) -> Path:
    """Write the rows as a JSON array with one row per line, and return the path."""
    with path.open("w", encoding="utf-8") as file:
        for number, row in enumerate(rows):
            file.write(",\n" if number else "[\n")
            json.dump(row, file, ensure_ascii=False)
        file.write("\n]\n")
    return path
