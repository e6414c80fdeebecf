"""Errors that a user can act on.

Every message says what is wrong, where (file, line, flag) and what to do. A program that meets one of them
prints it and ends with status 2; anything else is a defect of ours and keeps its traceback.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

USER_ERROR_STATUS = 2
# With half a surrogate pair, which no terminal can be sent.
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


class UserError(ValueError):
    """Something that the user, not the programmer, can put right.

    Attributes:
        on_one_rank: True if other ranks of the job may not meet it, so that this rank must print it.
        status: what the program ends with.
        word: what its line begins with.
    """

    on_one_rank = False
    status = USER_ERROR_STATUS
    word = "error"


class ConfigError(UserError):
    """Wrong or clashing arguments: all of them at once.

    Args:
        problems: one line for each problem, each saying which flag is wrong and what to do.
    """

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems: list[str] = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class DataError(UserError):
    """An input or packed file that is missing, damaged or does not fit the command."""


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged or does not fit the model."""


class DeviceError(UserError):
    """A device, or a library for it, that is not there or not usable."""


def escape_control_characters(text: str) -> str:
    r"""Return text of a stranger's file for a terminal: control characters but line breaks and tabs become \x1b."""
    return CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)
