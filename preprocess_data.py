"""Convert instruction data into packed files, or show what stands in them.

python preprocess_data.py --help
python preprocess_data.py inspect --help
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mindspeed_llm.process import exit_status_of, have_streams, leave, suit_many_tokens

if TYPE_CHECKING:
    from mindspeed_llm.indexed import Manifest


def convert(argv: Sequence[str]) -> None:
    """Rows to packed files, and their picture."""
    from mindspeed_llm.arguments.preprocess import parse_preprocess

    arguments = parse_preprocess(argv)
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # else numpy starts threads for products that nobody asks for
    from mindspeed_llm.reports.apart import PictureApart  # after --help, which need not wait for it

    prefix = arguments.output.output_prefix
    with contextlib.closing(PictureApart()) as picture:
        from mindspeed_llm.preprocessing import merge, preprocess  # while the other process begins

        def planned(manifest: Manifest) -> None:
            picture.draw(Path(prefix).name, manifest)

        suit_many_tokens()
        if arguments.input.merge_group_keys:
            merged = merge(arguments)
            if merged is None:
                return
            planned(merged)
        else:
            preprocess(arguments, planned)
        picture.put(f"{prefix}_packing.png")


def inspect(argv: Sequence[str]) -> None:
    """A pack and the summary of the manifest."""
    from mindspeed_llm.arguments.inspect import parse_inspect

    shown, decoding = parse_inspect(argv)
    from mindspeed_llm.reports.inspection import inspect

    inspect(shown, decoding)


def main() -> int:
    have_streams()
    argv = sys.argv[1:]
    if argv[:1] == ["inspect"]:
        return exit_status_of(lambda: inspect(argv[1:]), "preprocess_data.py inspect")
    return exit_status_of(lambda: convert(argv), "preprocess_data.py")


if __name__ == "__main__":
    leave(main())
