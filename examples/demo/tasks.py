"""The task type of the demo data, and functions shared by all families of tasks."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple


class Task(NamedTuple):
    """One Alpaca-style row."""

    instruction: str
    input: str
    output: str


# A family generates one task from a random number generator and a size: the number of items (2 to 90, mostly small).
Family = Callable[[random.Random, int], Task]
FAMILIES: dict[str, Family] = {}


def family(make: Family) -> Family:
    """Register a function as a family under its name."""
    FAMILIES[make.__name__] = make
    return make


def ask(rng: random.Random, *wordings: str, **values: object) -> str:
    """Choose one of several wordings of a request and fill it in, sometimes with a polite phrase around it."""
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
    """Choose `size` words, without repetition unless there are too few."""
    return rng.sample(words, size) if size <= len(words) else rng.choices(words, k=size)


def numbers(rng: random.Random, size: int, maximum: int = 99) -> list[int]:
    """Draw `size` integers from 1 to `maximum`."""
    return [rng.randint(1, maximum) for _ in range(size)]


def joined(words: Sequence[object], last: str = "and") -> str:
    """Join words as in 'a, b and c'."""
    texts = [str(word) for word in words]
    return texts[0] if len(texts) == 1 else ", ".join(texts[:-1]) + f" {last} {texts[-1]}"


def commas(words: Iterable[object]) -> str:
    """Join words as in 'a, b, c'."""
    return ", ".join(str(word) for word in words)


def counted(number: int, word: str) -> str:
    """Format a number and a noun, as in '1 pear', '3 cherries' or '2 peaches'."""
    if number == 1:
        return f"1 {word}"
    if word.endswith("y"):
        return f"{number} {word[:-1]}ies"
    return f"{number} {word}{'es' if word.endswith(('ch', 'sh', 's', 'x')) else 's'}"
