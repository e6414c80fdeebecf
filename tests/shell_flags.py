"""Parse the flags of a recorded command line."""

from __future__ import annotations


def as_mapping(words: list[str]) -> dict[str, str | None]:
    """Return flag → value (None for a switch); the last value of a repeated flag is used."""
    flags: dict[str, str | None] = {}
    for word, after in zip(words, [*words[1:], "--"], strict=True):
        if word.startswith("--"):
            flags[word[2:]] = None if after.startswith("--") else after
    return flags
