"""Which files an `--input` means, and which format each of them is in."""

from __future__ import annotations

import dataclasses
import glob
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mindspeed_llm.errors import DataError
from mindspeed_llm.rawdata.row_limits import ROW_MIB

# Ending of a file name → format. Rows of text formats have lines; those of the columnar ones have numbers.
FORMATS = {
    ".json": "json",
    ".jsonl": "jsonl",
    ".csv": "csv",
    ".txt": "txt",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
TEXT_FORMATS = ("json", "jsonl", "csv", "txt")
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}


@dataclass(frozen=True)
class InputFile:
    """One file to read.

    Attributes:
        format: one of the values of FORMATS.
        compression: 'gzip', 'zstd' or None.
        size: bytes on disk.
        row_bytes: size limit of one row in bytes, after decompression.
    """

    path: Path
    format: str
    compression: str | None
    size: int
    row_bytes: int = ROW_MIB << 20


def find_input_files(inputs: Sequence[str], row_mib: int = ROW_MIB) -> list[list[InputFile]]:
    """Find the files of each of `inputs` (files, directories, globs): one list for each input, sorted by name.

    Args:
        row_mib: size limit of one row.

    Raises:
        DataError: nothing there, an empty file, a format that is not read, or several formats in one input.
    """
    return [[dataclasses.replace(file, row_bytes=row_mib << 20) for file in _files_of(name)] for name in inputs]


def _files_of(name: str) -> list[InputFile]:
    path = Path(name)
    if path.is_file():
        return [_input_file(path)]
    if path.is_dir():
        found = sorted(entry for entry in path.iterdir() if entry.is_file() and not entry.name.startswith("."))
        if not found:
            inside = ", ".join(sorted(entry.name for entry in path.iterdir() if entry.is_dir()))
            what = f", but directories ({inside}); name one of them, or '{name}/**/*' for all" if inside else ""
            raise DataError(f"--input {name}: the directory holds no file{what or '; name one that holds the data'}")
    elif glob.has_magic(name):
        found = sorted(Path(match) for match in glob.glob(name, recursive=True) if Path(match).is_file())  # noqa: PTH207
        if not found:
            raise DataError(f"--input {name}: no file matches; check the pattern (in quotes, so that it arrives whole)")
    else:
        raise DataError(f"--input {name}: no such file or directory; check the path")

    held = Counter("".join(_endings(entry)) or "no ending" for entry in found)
    if len({_endings(entry)[0] for entry in found}) > 1:
        listing = ", ".join(f"{count} {ending}" for ending, count in sorted(held.items()))
        raise DataError(
            f"--input {name}: holds files of several formats ({listing}); name those of one format, as a glob"
        )
    return [_input_file(entry) for entry in found]


def _endings(path: Path) -> tuple[str, str]:
    """('.jsonl', '.gz') of rows.jsonl.gz; empty text for an ending that is not there."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        return (suffixes[-2] if len(suffixes) > 1 else "", suffixes[-1])
    return (suffixes[-1] if suffixes else "", "")


def _input_file(path: Path) -> InputFile:
    ending, packed = _endings(path)
    kind = FORMATS.get(ending)
    if kind is None or (packed and kind not in TEXT_FORMATS):
        readable = ", ".join(FORMATS) + "; the text ones also with " + " or ".join(COMPRESSIONS)
        raise DataError(
            f"--input {path}: {(ending + packed) or 'a file without an ending'} is not read; known are {readable}"
        )
    size = path.stat().st_size
    if size == 0:
        raise DataError(f"--input {path}: the file is empty; check that it was written or downloaded completely")
    return InputFile(path, kind, COMPRESSIONS.get(packed), size)
