r"""Marks around the messages in a rendered conversation, which show what the template made of each message.

    message 3     "  yes \n"
    marked        "  " [o3] "yes" [c3] " \n"        inside its white space, which many templates remove
    rendered      <|assistant|>[o3]yes[c3]<|end|>
    read          text "<|assistant|>yes<|end|>", message 3 is characters 13…16

The brackets are a noncharacter of Unicode, which no row may contain, so marks are unambiguous. The template may use a
mark several times or lose it: such a mark counts as lost. The tag {% generation %} has marks of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field

BRACKET = "\U0010ffff"
OPEN, CLOSE = "o", "c"
GENERATION_OPEN, GENERATION_CLOSE = f"{BRACKET}g{BRACKET}", f"{BRACKET}h{BRACKET}"
# The other noncharacters are placeholders of control tokens (tokenization/plain_control_tokens.py).
NONCHARACTERS = [chr((plane << 16) + last) for plane in range(17) for last in (0xFFFE, 0xFFFF)]


@dataclass
class MarkedText:
    """A rendered text without its marks, and where they were.

    Attributes:
        text: the text.
        starts: number of a message → index of its first character.
        ends: number of a message → index after its last character.
        generation: (start, end) of each text that the template marks with {% generation %}; None if these marks are
            nested or incomplete.
    """

    text: str
    starts: dict[int, int] = field(default_factory=dict)
    ends: dict[int, int] = field(default_factory=dict)
    generation: list[tuple[int, int]] | None = field(default_factory=list)


def has_noncharacter(text: str) -> bool:
    """Return whether a text contains a noncharacter that may be a mark."""
    # A search for each of them is faster than one for any of them.
    return not text.isascii() and any(character in text for character in NONCHARACTERS)


def mark(text: str, number: int) -> str:
    """Return the text of message `number` with marks around it, inside its white space."""
    core = text.strip()
    start = len(text) - len(text.lstrip())
    opening, closing = f"{BRACKET}{OPEN}{number}{BRACKET}", f"{BRACKET}{CLOSE}{number}{BRACKET}"
    return f"{text[:start]}{opening}{core}{closing}{text[start + len(core) :]}"


def read_marks(rendered: str) -> MarkedText:
    """Take the marks out of a rendered text."""
    if BRACKET not in rendered:
        return MarkedText(rendered)
    parts = rendered.split(BRACKET)
    if len(parts) % 2 == 0:  # the template has cut a mark
        return MarkedText(rendered)
    found = MarkedText("".join(parts[::2]))
    places: dict[str, list[int]] = {}
    generation = ""
    position = 0
    # Not strict: the text after the last mark has none.
    for before, name in zip(parts[::2], parts[1::2], strict=False):
        position += len(before)
        if name in ("g", "h"):
            generation += name
        places.setdefault(name, []).append(position)
    for name, positions in places.items():
        if len(positions) == 1 and name[1:].isdecimal():
            (found.starts if name[0] == OPEN else found.ends)[int(name[1:])] = positions[0]
    starts, ends = places.get("g", []), places.get("h", [])
    found.generation = list(zip(starts, ends, strict=True)) if generation == "gh" * len(starts) else None
    return found
