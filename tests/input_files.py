"""The input files that a test reads."""

from __future__ import annotations

from collections.abc import Sequence

from mindspeed_llm.rawdata import InputFile, find_sources


def find_files(inputs: Sequence[str]) -> list[InputFile]:
    """The files of all `inputs` in one list."""
    return [file for source in find_sources(inputs) for file in source]
