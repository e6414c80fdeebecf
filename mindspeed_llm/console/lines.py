"""Lines for the user while a program works."""

from __future__ import annotations

import sys

from mindspeed_llm.errors import escape_control_characters


def say(line: str) -> None:
    """Print one line to stderr, at once."""
    print(escape_control_characters(line), file=sys.stderr, flush=True)
