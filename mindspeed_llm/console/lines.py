"""Lines for the user while a program works."""

from __future__ import annotations

import sys

from mindspeed_llm.errors import printable


def say(line: str) -> None:
    """Print one line to stderr, at once."""
    print(printable(line), file=sys.stderr, flush=True)
