"""Define the errors that a user can fix.

Every message states what is wrong, where (file, line, flag) and how to fix it. A program prints these errors without
a traceback and exits with status 2. Any other exception is a bug of this package and keeps its traceback.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

USER_ERROR_STATUS = 2
# All control characters except tab and line break: they could move the cursor or change colours of a terminal. Lone
# surrogates are included because they cannot be encoded as UTF-8.
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


class UserError(ValueError):
    """Base class of the errors that are caused by the user's input and can be fixed by the user.

    Attributes:
        on_one_rank: whether this rank prints the error even if it is not rank 0, because rank 0 may not raise it.
        status: exit status of the program.
        word: first word of each printed line, before the colon.
    """

    on_one_rank = False
    status = USER_ERROR_STATUS
    word = "error"


class ConfigError(UserError):
    """Invalid or conflicting arguments. One error reports all problems at once.

    Args:
        problems: one line per problem, each naming the flag or file and how to fix it.
    """

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems: list[str] = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class DataError(UserError):
    """An input file or packed file is missing or damaged, or does not match the command."""


class CheckpointError(UserError):
    """A checkpoint is missing or damaged, or does not match the model."""


class DeviceError(UserError):
    """A device, or a library that it needs, is missing or unusable."""


def escape_control_characters(text: str) -> str:
    r"""Replace control characters, except tabs and line breaks, by escape sequences such as \x1b.

    Messages quote text of untrusted files. Escaping it prevents control sequences from reaching the terminal.
    """
    return CONTROL.sub(lambda match: ascii(match[0])[1:-1], text)
