"""Read files, directories or globs as a stream of rows, each with its file and line.

    find_input_files(["./dataset"]) -> [[InputFile(path, format, compression), ...]]
    read_rows(files)                -> Row(file, line, value), Row(file, line, value), ...

This package does not know what the columns mean. Its memory does not grow with the files.
"""

from mindspeed_llm.rawdata.content_check import content_problem, encoding_advice
from mindspeed_llm.rawdata.file_blocks import FileBlock, is_splittable, read_block, split_into_blocks
from mindspeed_llm.rawdata.input_files import InputFile, companion_files, find_input_files
from mindspeed_llm.rawdata.interleaving import interleave_rows
from mindspeed_llm.rawdata.row import BROKEN_JSON, NOT_UTF8, ReadPosition, Row
from mindspeed_llm.rawdata.row_limits import TOO_DEEP, TOO_LARGE
from mindspeed_llm.rawdata.row_reader import read_rows

__all__ = [
    "BROKEN_JSON",
    "NOT_UTF8",
    "TOO_DEEP",
    "TOO_LARGE",
    "FileBlock",
    "InputFile",
    "ReadPosition",
    "Row",
    "companion_files",
    "content_problem",
    "encoding_advice",
    "find_input_files",
    "interleave_rows",
    "is_splittable",
    "read_block",
    "read_rows",
    "split_into_blocks",
]
