"""Convert weights: the program of convert_ckpt.py and `mindspeed-llm convert`.

After a user error the exit status is 2 and no partial output remains.
"""

from __future__ import annotations

from collections.abc import Sequence

from mindspeed_llm.arguments.convert_arguments import PROGRAM, parse_convert_arguments
from mindspeed_llm.console.logging_config import configure_logging


def main(argv: Sequence[str], program: str = PROGRAM) -> None:
    """Convert the weights as the command-line arguments specify.

    Args:
        argv: command-line arguments without the program's name.
        program: name of the program for the help.

    Raises:
        UserError: the arguments or the weights are invalid, or the output cannot be written.
    """
    configure_logging()
    arguments = parse_convert_arguments(argv, program, finds_files=True)
    # Imported late: it imports torch, which --help and the check of the arguments do not need.
    from mindspeed_llm.conversion import convert

    print(f"wrote {convert(arguments)}")
