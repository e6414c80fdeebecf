"""Families of tasks about words, sentences and simple rules of grammar."""

from __future__ import annotations

import random

from tasks import Task, ask, commas, family, joined, several
from words import (
    ADJECTIVES,
    ANIMALS,
    CATEGORIES,
    CITIES,
    COLOURS,
    FIRST_NAMES,
    NOUNS,
    OPPOSITES,
    PLACES,
    PLURALS,
    TOOLS,
    VELAN,
    VERBS,
)


@family
def alphabetise(rng: random.Random, size: int) -> Task:
    given = several(rng, NOUNS + CITIES, size)
    wish = ask(
        rng,
        "Sort the words alphabetically.",
        "Put these words in alphabetical order.",
        "Arrange the list from A to Z.",
        "Bring the words into dictionary order.",
    )
    ordered = sorted(given, key=str.lower)
    return Task(wish, commas(given), commas(ordered))


@family
def reverse_list(rng: random.Random, size: int) -> Task:
    given = several(rng, NOUNS, size)
    wish = ask(
        rng, "Reverse the order of the words.", "Write the list backwards, last word first.", "Turn the list around."
    )
    return Task(wish, commas(given), commas(reversed(given)))


@family
def spell(rng: random.Random, size: int) -> Task:
    words = several(rng, NOUNS, max(1, min(size // 2, 12)))
    back = rng.random() < 0.5
    wish = (
        ask(rng, "Spell each word backwards.", "Write the letters in reverse.")
        if back
        else ask(rng, "Spell each word, letter by letter.", "Write the words with a dash between the letters.")
    )
    lines = [word[::-1] if back else "-".join(word) for word in words]
    return Task(wish, commas(words), "\n".join(lines))


@family
def count_letter(rng: random.Random, size: int) -> Task:
    word = rng.choice(NOUNS) if size < 4 else " ".join(several(rng, NOUNS, min(size, 10)))
    letter = rng.choice("aeiort")
    wish = ask(rng, 'How many times does the letter "{c}" occur?', 'Count the letter "{c}" in the text.', c=letter)
    return Task(wish, word, str(word.count(letter)))


@family
def count_words(rng: random.Random, size: int) -> Task:
    words = several(rng, ADJECTIVES + NOUNS, size)
    wish = ask(rng, "How many words are there?", "Count the words.", "Give the number of words in the line below.")
    return Task(wish, " ".join(words), f"There are {len(words)} words.")


def velan_noun(rng: random.Random) -> str:
    """Draw a noun phrase: "the", an adjective and an animal."""
    adjective = rng.choice(("red", "blue", "green", "old", "young", "quiet", "small", "large"))
    return f"the {adjective} {rng.choice(('cat', 'dog', 'fox', 'owl', 'horse', 'goat'))}"


def velan_sentence(rng: random.Random) -> str:
    """Draw a sentence that consists of words with a Velan translation."""
    place = rng.choice(("garden", "market", "bridge", "harbour", "school"))
    thing = rng.choice(("apple", "pear", "lamp", "rope", "ladder"))
    verb = rng.choice(("sees", "finds", "carries", "watches", "paints"))
    what = rng.choice((velan_noun(rng), f"a {thing}"))
    return f"{velan_noun(rng)} {verb} {what} {rng.choice(('in', 'near'))} the {place}"


@family
def to_velan(rng: random.Random, size: int) -> Task:
    sentences = [velan_sentence(rng) for _ in range(max(1, size // 3))]
    wish = ask(
        rng,
        "Translate into Velan.",
        "How do you say this in Velan?",
        "Write the text in the Velan language.",
        "Give the Velan translation.",
    )
    done = [" ".join(VELAN[word] for word in sentence.split()) for sentence in sentences]
    return Task(wish, ". ".join(sentences) + ".", ". ".join(done) + ".")


@family
def from_velan(rng: random.Random, size: int) -> Task:
    sentences = [velan_sentence(rng) for _ in range(max(1, size // 4))]
    wish = ask(
        rng, "Translate from Velan into English.", "What does this Velan text mean?", "Put the Velan text into English."
    )
    done = [" ".join(VELAN[word] for word in sentence.split()) for sentence in sentences]
    return Task(wish, ". ".join(done) + ".", ". ".join(sentences) + ".")


@family
def velan_word_list(rng: random.Random, size: int) -> Task:
    words = several(rng, list(VELAN), min(size, 30))
    wish = ask(
        rng,
        "Make a vocabulary list English - Velan.",
        "Give the Velan word for each of these.",
        "Translate the words one by one into Velan.",
    )
    return Task(wish, commas(words), "\n".join(f"{word} - {VELAN[word]}" for word in words))


@family
def plurals(rng: random.Random, size: int) -> Task:
    words = several(rng, list(PLURALS), min(size, 27))
    wish = ask(rng, "Write the plural of each word.", "Give the plural forms.", "Turn the nouns into plurals.")
    return Task(wish, commas(words), commas(PLURALS[word] for word in words))


@family
def opposites(rng: random.Random, size: int) -> Task:
    words = several(rng, list(OPPOSITES), min(size, 20))
    wish = ask(rng, "Give the opposite of each word.", "Name the antonyms.", "Write the word that means the contrary.")
    return Task(wish, commas(words), commas(OPPOSITES[word] for word in words))


def plain_sentence(rng: random.Random) -> tuple[str, tuple[str, str, str, str], str]:
    """Draw the subject, the verb forms and the object of a simple sentence."""
    subject = f"the {rng.choice(ADJECTIVES)} {rng.choice(ANIMALS)}" if rng.random() < 0.5 else rng.choice(FIRST_NAMES)
    return subject, rng.choice(VERBS), f"the {rng.choice(COLOURS)} {rng.choice(TOOLS)}"


def capital(text: str) -> str:
    return text[0].upper() + text[1:]


@family
def past_tense(rng: random.Random, size: int) -> Task:
    made = [plain_sentence(rng) for _ in range(max(1, size // 2))]
    wish = ask(rng, "Rewrite in the past tense.", "Put the text into the past.", "Change the verbs to the past tense.")
    before = " ".join(capital(f"{s} {v[1]} {o}.") for s, v, o in made)
    return Task(wish, before, " ".join(capital(f"{s} {v[2]} {o}.") for s, v, o in made))


@family
def passive(rng: random.Random, size: int) -> Task:
    made = [plain_sentence(rng) for _ in range(max(1, size // 3))]
    wish = ask(rng, "Turn into the passive voice.", "Rewrite with a passive verb.", "Make the sentences passive.")
    before = " ".join(capital(f"{s} {v[1]} {o}.") for s, v, o in made)
    return Task(wish, before, " ".join(capital(f"{o} is {v[3]} by {s}.") for s, v, o in made))


@family
def questions(rng: random.Random, size: int) -> Task:
    made = [plain_sentence(rng) for _ in range(max(1, size // 3))]
    wish = ask(
        rng, "Turn each statement into a question.", "Ask whether this is so.", "Make questions out of the sentences."
    )
    before = " ".join(capital(f"{s} {v[1]} {o}.") for s, v, o in made)
    return Task(wish, before, " ".join(f"Does {s} {v[0]} {o}?" for s, v, o in made))


@family
def change_case(rng: random.Random, size: int) -> Task:
    words = several(rng, ADJECTIVES + NOUNS, min(size, 25))
    styles = {
        "upper case": " ".join(words).upper(),
        "title case": " ".join(words).title(),
        "snake_case": "_".join(words),
        "kebab-case": "-".join(words),
        "camelCase": words[0] + "".join(word.title() for word in words[1:]),
    }
    style = rng.choice(list(styles))
    wish = ask(
        rng, "Write this in {style}.", "Convert the text to {style}.", "Change the words to {style}.", style=style
    )
    return Task(wish, " ".join(words), styles[style])


@family
def acronym(rng: random.Random, size: int) -> Task:
    words = [word.title() for word in several(rng, ADJECTIVES + NOUNS, min(size, 9))]
    wish = ask(
        rng,
        "Form the acronym.",
        "Make an abbreviation from the first letters.",
        "Which letters do the words begin with?",
    )
    return Task(wish, " ".join(words), "".join(word[0] for word in words))


@family
def remove_duplicates(rng: random.Random, size: int) -> Task:
    words = several(rng, ANIMALS, max(2, min(size // 2 + 1, len(ANIMALS))))
    given = rng.choices(words, k=size)
    wish = ask(
        rng, "Remove the duplicates and keep the order.", "List each word once.", "Delete words that were there before."
    )
    return Task(wish, commas(given), commas(dict.fromkeys(given)))


@family
def classify(rng: random.Random, size: int) -> Task:
    pairs = [(rng.choice(CATEGORIES[kind]), kind) for kind in rng.choices(list(CATEGORIES), k=min(size, 24))]
    wish = ask(
        rng,
        "Say of each word whether it is an animal, a fruit, a tool, a colour or a place.",
        "Classify the words.",
        "Which kind of thing is each of these?",
    )
    return Task(wish, commas(word for word, _ in pairs), "\n".join(f"{word}: {kind}" for word, kind in pairs))


@family
def describe(rng: random.Random, size: int) -> Task:
    """Write a short description or, for a large size, a story of several paragraphs (the longest rows of the data)."""
    animal, place, name = rng.choice(ANIMALS), rng.choice(PLACES), rng.choice(FIRST_NAMES)
    wish = ask(
        rng,
        "Write {length} about the {animal} and the {place}.",
        "Tell me {length} in which a {animal} goes to the {place}.",
        animal=animal,
        place=place,
        length="a sentence" if size < 4 else "a story" if size < 12 else "a long story",
    )
    text = [f"The {rng.choice(ADJECTIVES)} {animal} lives near the {place}."]
    for i in range(size - 1):
        adjective, thing, verb = rng.choice(ADJECTIVES), rng.choice(TOOLS), rng.choice(VERBS)
        other = rng.choice(ANIMALS)
        text.append(
            rng.choice(
                (
                    f"In the morning it {verb[2]} the {adjective} {thing}.",
                    f"{name} came to the {rng.choice(PLACES)} and {verb[2]} a {rng.choice(COLOURS)} {thing}.",
                    f'"Where is the {thing}?" asked the {other}.',
                    f'"I have {verb[3]} the {thing}," said the {animal}.',
                    f"Then the {other} and the {animal} {verb[2]} the {thing} together.",
                    f"It was {adjective}, and nobody {verb[2]} the {other}.",
                )
            )
        )
        if i % 6 == 5:
            text.append("\n\n")
    return Task(wish, "", " ".join(text).replace(" \n\n ", "\n\n").strip())


@family
def fill_gap(rng: random.Random, size: int) -> Task:
    made = [plain_sentence(rng) for _ in range(max(1, size // 3))]
    wish = ask(
        rng, "Put the right form of the verb into the gap.", "Fill in the verb given in brackets.", "Complete the text."
    )
    before = " ".join(capital(f"{s} ___ ({v[0]}) {o} yesterday.") for s, v, o in made)
    return Task(wish, before, joined([v[2] for _, v, _ in made], "and"))
