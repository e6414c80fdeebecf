"""What a task of the demo set is, and the pieces all families share."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple


class Task(NamedTuple):
    """One Alpaca-style row."""

    instruction: str
    input: str
    output: str


# A family makes one task from a random source and a size: the number of items it is about (2 … about 90, mostly few).
Family = Callable[[random.Random, int], Task]
FAMILIES: dict[str, Family] = {}


def family(make: Family) -> Family:
    """Put a function among the families, under its own name."""
    FAMILIES[make.__name__] = make
    return make


def ask(rng: random.Random, *wordings: str, **values: object) -> str:
    """One of several wordings of the same wish, filled in, now and then with a word of courtesy around it."""
    text = rng.choice(wordings).format(**values)
    if rng.random() < 0.18:
        text = (
            rng.choice(("Here is a task for you: ", "Please help me with this. ", "A small exercise: ", "Next one. "))
            + text
        )
    if rng.random() < 0.12:
        text += rng.choice((" Answer briefly.", " Give only the result.", " Thank you.", " Be careful."))
    return text


def several(rng: random.Random, words: Sequence[str], size: int) -> list[str]:
    """`size` of `words`, without repetition as far as there are enough."""
    return rng.sample(words, size) if size <= len(words) else rng.choices(words, k=size)


def numbers(rng: random.Random, size: int, most: int = 99) -> list[int]:
    """`size` whole numbers from 1 to `most`."""
    return [rng.randint(1, most) for _ in range(size)]


def joined(words: Sequence[object], last: str = "and") -> str:
    """'a, b and c'."""
    texts = [str(word) for word in words]
    return texts[0] if len(texts) == 1 else ", ".join(texts[:-1]) + f" {last} {texts[-1]}"


def commas(words: Iterable[object]) -> str:
    """'a, b, c'."""
    return ", ".join(str(word) for word in words)


def counted(number: int, word: str) -> str:
    """'1 pear', '3 cherries', '2 peaches'."""
    if number == 1:
        return f"1 {word}"
    if word.endswith("y"):
        return f"{number} {word[:-1]}ies"
    return f"{number} {word}{'es' if word.endswith(('ch', 'sh', 's', 'x')) else 's'}"
