"""Show the content of packed files: `preprocess_data.py inspect` and `mindspeed-llm inspect`."""

from __future__ import annotations

from collections.abc import Sequence

from mindspeed_llm.arguments.inspect_arguments import PROGRAM, parse_inspect_arguments
from mindspeed_llm.console.logging_config import configure_logging


def main(argv: Sequence[str], program: str = PROGRAM) -> None:
    """Show one pack and the summary of the manifest.

    Args:
        argv: command-line arguments without the program's name.
        program: name of the program for the help.

    Raises:
        UserError: the arguments or the files are invalid.
    """
    configure_logging()
    shown, decoding = parse_inspect_arguments(argv, program, finds_files=True)
    from mindspeed_llm.pack_viewer import inspect_pack  # slow; --help does not need it

    inspect_pack(shown, decoding)
