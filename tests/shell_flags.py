"""The flags of a command line that a test recorded."""

from __future__ import annotations


def as_mapping(words: list[str]) -> dict[str, str | None]:
    """Flags with their value (None for a switch); of a flag given twice the last."""
    found: dict[str, str | None] = {}
    for word, after in zip(words, [*words[1:], "--"], strict=True):
        if word.startswith("--"):
            found[word[2:]] = None if after.startswith("--") else after
    return found
