"""The input files that a test reads."""

from __future__ import annotations

from collections.abc import Sequence

from mindspeed_llm.rawdata import InputFile, find_input_files


def find_files(inputs: Sequence[str]) -> list[InputFile]:
    """The files of all `inputs` in one list."""
    return [file for source in find_input_files(inputs) for file in source]
