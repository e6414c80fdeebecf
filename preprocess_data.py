"""Convert instruction data into packed files, or show the content of packed files.

python preprocess_data.py --help
python preprocess_data.py inspect --help
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from mindspeed_llm.console.logging_config import configure_logging
from mindspeed_llm.entry_point import end_process, ensure_standard_streams, flush_output, run_program
from mindspeed_llm.errors import UserError
from mindspeed_llm.interrupts import interrupts

logger = logging.getLogger("mindspeed_llm.preprocess_data")  # __name__ is __main__ here


def convert(argv: Sequence[str]) -> None:
    """Convert rows into packed files, and draw the picture of the packing."""
    from mindspeed_llm.arguments.preprocess_arguments import parse_preprocess_arguments

    arguments = parse_preprocess_arguments(argv)
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
    from mindspeed_llm.indexed_dataset import document_manifest_path, document_prefix, manifest_path

    stem = prefix if key is None else document_prefix(prefix, key)
    picture = Path(f"{stem}_packing.png")
    try:
        picture.unlink(missing_ok=True)  # an old picture that cannot be replaced would show other data
        from mindspeed_llm.reports import draw_packing

        draw_packing(manifest_path(prefix) if key is None else document_manifest_path(stem), picture)
    except (OSError, ImportError, UserError) as error:
        logger.info(f"notice: no picture was drawn ({error})")


def inspect(argv: Sequence[str]) -> None:
    """Show one pack and the summary of the manifest."""
    from mindspeed_llm.arguments.inspect_arguments import parse_inspect_arguments

    shown, decoding = parse_inspect_arguments(argv)
    from mindspeed_llm.pack_viewer import inspect_pack

    inspect_pack(shown, decoding)


def main() -> int:
    """Run the command line and return the exit status."""
    ensure_standard_streams()
    configure_logging()
    argv = sys.argv[1:]
    with interrupts():
        if argv[:1] == ["inspect"]:
            return run_program(lambda: inspect(argv[1:]), "preprocess_data.py inspect")
        return run_program(lambda: convert(argv), "preprocess_data.py")


if __name__ == "__main__":
    end_process(flush_output(main()))
