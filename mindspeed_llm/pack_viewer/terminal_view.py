"""Render a pack for the terminal: one colour per sample and trained text in bold, or in brackets without colours."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import TextIO

from mindspeed_llm.console.text_tables import key_value_table
from mindspeed_llm.pack_viewer.pack_view import PackView, SampleView

# From the palette of 256 colours: readable on light and dark backgrounds, and adjacent ones differ clearly.
SAMPLE_COLOURS = (33, 172, 35, 133, 136, 37, 168, 68)
BOLD, FAINT, RESET = "\x1b[1m", "\x1b[2m", "\x1b[0m"
OPEN, CLOSE = "⟦", "⟧"
# Text from the data must not control the terminal: escape sequences, and characters that change the text direction.
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def use_colour(stream: TextIO, choice: str) -> bool:
    """Return whether to use colours on a stream (https://no-color.org).

    Args:
        stream: output stream.
        choice: value of --color: auto, always or never.
    """
    if choice != "auto":
        return choice == "always"
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb" and stream.isatty()


def render_pack(view: PackView, summary: Sequence[tuple[str, str]], coloured: bool) -> str:
    """Render the summary and one pack as text.

    Args:
        view: the pack.
        summary: (name, value) rows; may be empty.
        coloured: whether to use colours and bold text.
    """
    lines = (
        [key_value_table([(name, show_control_characters(value)) for name, value in summary]), ""] if summary else []
    )
    share = 100 * view.trained / view.tokens if view.tokens else 0.0
    lines.append(
        f"pack {view.number} (the last is {view.packs - 1}): {_count(len(view.samples), 'sample')}, "
        f"{_count(view.tokens, 'token')}, {view.trained:,} trained ({share:.1f} %), {view.padding:,} slots of padding"
        + (f", {view.virtual_tokens:,} slots for virtual tokens" if view.virtual_tokens else "")
    )
    lines.append(f"trained: {BOLD}bold{RESET}; not trained: faint" if coloured else f"trained: {OPEN}…{CLOSE}")
    if view.note:
        lines.append(view.note)
    for number, sample in enumerate(view.samples, start=1):
        lines += ["", *_sample_lines(number, sample, coloured)]
    if view.padding:
        lines += ["", _rule(f"padding · {view.padding:,} slots", FAINT if coloured else "")]
    return "\n".join(lines)


def _sample_lines(number: int, sample: SampleView, coloured: bool) -> list[str]:
    """Return the header line and the text of a sample."""
    colour = f"\x1b[38;5;{SAMPLE_COLOURS[(number - 1) % len(SAMPLE_COLOURS)]}m" if coloured else ""
    last = sample.start + sample.tokens - 1
    tokens = f"{_count(sample.tokens, 'token')}, {sample.trained:,} trained"
    head = f"sample {number} · slots {sample.start:,} to {last:,} · {tokens}"
    text = []
    for span in sample.spans:
        piece = show_control_characters(span.text)
        if coloured:
            text.append(f"{colour}{BOLD if span.trained else FAINT}{piece}{RESET}")
        else:
            text.append(f"{OPEN}{piece}{CLOSE}" if span.trained else piece)
    return [_rule(head, colour), "".join(text).rstrip("\n")]


def _rule(text: str, colour: str) -> str:
    line = f"── {text} " + "─" * max(2, 76 - len(text))
    return f"{colour}{line}{RESET}" if colour else line


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def show_control_characters(text: str) -> str:
    """Replace control characters with visible symbols; line ends and tabs are kept.

    Args:
        text: text from the data.
    """

    def symbol(match: re.Match[str]) -> str:
        # U+2400 and the characters after it are the symbols of the control characters 0x00 to 0x1F.
        code = ord(match[0])
        return chr(0x2400 + code) if code < 0x20 else ("␡" if code == 0x7F else f"<{code:04X}>")

    # A carriage return alone stays visible, because it would overwrite the line.
    return CONTROL.sub(symbol, text.replace("\r\n", "\n"))
