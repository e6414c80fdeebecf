"""Read single flags from the words of a command line that cannot be parsed yet."""

from __future__ import annotations

from collections.abc import Sequence


def value_of(flag: str, argv: Sequence[str]) -> str | None:
    """Return the last value that a command line gives to a flag; None without the flag.

    Args:
        flag: name of the flag.
        argv: command-line arguments without the program's name.
    """
    value = None
    for number, argument in enumerate(argv):
        if argument == flag and number + 1 < len(argv):
            value = argv[number + 1]
        elif argument.startswith(f"{flag}="):
            value = argument.partition("=")[2]
    return value
