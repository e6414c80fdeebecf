"""Convert raw data into packed files or document files: preprocess_data.py and `mindspeed-llm preprocess`."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from mindspeed_llm.arguments.preprocess_arguments import PROGRAM, parse_preprocess_arguments
from mindspeed_llm.console.logging_config import configure_logging
from mindspeed_llm.errors import UserError

logger = logging.getLogger(__name__)


def main(argv: Sequence[str], program: str = PROGRAM) -> None:
    """Convert the rows or documents, and draw the picture of the packing.

    Args:
        argv: command-line arguments without the program's name.
        program: name of the program for the help.

    Raises:
        UserError: the arguments or the data are invalid, or the output cannot be written.
    """
    configure_logging()
    arguments = parse_preprocess_arguments(argv, program, finds_files=True)
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before the import of numpy, which else starts idle threads
    from mindspeed_llm.preprocessing import merge_packed_files, preprocess  # slow; --help does not need it

    manifest = merge_packed_files(arguments) if arguments.input.merge_group_keys else preprocess(arguments)
    if manifest is not None:
        draw(arguments.output.output_prefix, None if manifest.documents is None else manifest.documents.key)


def draw(prefix: str, key: str | None) -> None:
    """Draw PREFIX_packing.png, or the lengths of documents in PREFIX_KEY_document_packing.png.

    A failure is only a notice, because the files are complete without it.

    Args:
        prefix: --output-prefix.
        key: key of document files; None for packed files.
    """
    from mindspeed_llm.manifest import document_manifest_path, document_prefix, manifest_path

    stem = prefix if key is None else document_prefix(prefix, key)
    picture = Path(f"{stem}_packing.png")
    try:
        picture.unlink(missing_ok=True)  # an old picture that cannot be replaced would show other data
        from mindspeed_llm.reports import draw_packing

        draw_packing(manifest_path(prefix) if key is None else document_manifest_path(stem), picture)
    except (OSError, ImportError, UserError) as error:
        logger.info(f"notice: no picture was drawn ({error})")
