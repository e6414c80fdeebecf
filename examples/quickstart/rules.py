"""The tasks of the quickstart: four rules over lists of letters, and how text and questions are worded.

    b d a f c  →  reverse      c f a d b
                  capitals     B D A F C
                  next         c e b g d
                  both         C F A D B       reverse, then capitals; occurs only in fine-tuning

A list has five or six of the letters a to l. There are 12⁵ + 12⁶ = 3,234,816 lists, so a model that knows the answers
of a training set knows next to nothing: it has to learn the rules.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

LETTERS = "abcdefghijkl"
LENGTHS = (5, 6)
SHORT_SHARE = 1 / 3  # share of lists with five letters, of which there are twelve times fewer
List = tuple[str, ...]


def reverse(letters: List) -> List:
    return letters[::-1]


def capitals(letters: List) -> List:
    return tuple(letter.upper() for letter in letters)


def following(letters: List) -> List:
    return tuple(chr(ord(letter) + 1) for letter in letters)


def both(letters: List) -> List:
    return capitals(reverse(letters))


class Kind(NamedTuple):
    """One kind of task.

    Attributes:
        rule: gives the answer.
        wordings: forms of the question; {list} is the list.
        sentence: form of the sentence in the text for pretraining; "" if the rule does not occur there.
    """

    rule: Callable[[List], List]
    wordings: tuple[str, ...]
    sentence: str = ""


KINDS = {
    "reverse": Kind(
        reverse,
        ("Write backwards: {list}", "Reverse the letters {list}", "Read from the end: {list}"),
        "Written backwards: {list}.",
    ),
    "capitals": Kind(
        capitals,
        ("Write in capitals: {list}", "Capital letters for {list}"),
        "In capitals: {list}.",
    ),
    "next": Kind(
        following,
        ("Write the next letter of each: {list}", "Move each letter on by one: {list}"),
        "The next letters: {list}.",
    ),
    "both": Kind(both, ("Write backwards in capitals: {list}",)),
}
OPENING = "The letters: {list}."


def show(letters: List) -> str:
    return " ".join(letters)


def draw_list(rng: random.Random) -> List:
    length = LENGTHS[0] if rng.random() < SHORT_SHARE else LENGTHS[1]
    return tuple(rng.choice(LETTERS) for _ in range(length))


def traces(letters: List) -> set[List]:
    """Return the list and everything that the rules make of it, in small letters."""
    return {letters, *(tuple(letter.lower() for letter in kind.rule(letters)) for kind in KINDS.values())}


def space() -> dict[int, int]:
    """Return the number of different lists of each length."""
    return {length: len(LETTERS) ** length for length in LENGTHS}


def document(rng: random.Random, letters: List) -> str:
    """Return a text for pretraining: a list, and what the rules make of it, in any order."""
    kinds = [kind for kind in KINDS.values() if kind.sentence]
    rng.shuffle(kinds)
    return " ".join(
        [OPENING.format(list=show(letters)), *(k.sentence.format(list=show(k.rule(letters))) for k in kinds)]
    )


def question(rng: random.Random, kind: str, letters: List) -> str:
    return rng.choice(KINDS[kind].wordings).format(list=show(letters))


def answer(kind: str, letters: List) -> str:
    return show(KINDS[kind].rule(letters))


def text_prompt(kind: str, letters: List) -> str:
    """Return the beginning of a text for pretraining that a model continues with the answer and a full stop."""
    sentence = KINDS[kind].sentence
    return f"{OPENING.format(list=show(letters))} {sentence.split(' {list}')[0]}"
