"""Find the files that an `--input` specifies, and their formats."""

from __future__ import annotations

import dataclasses
import glob
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mindspeed_llm.arguments.missing_paths import missing_input
from mindspeed_llm.errors import DataError
from mindspeed_llm.rawdata.row_limits import ROW_MIB

# Extension of a file name → format. Rows of text formats are identified by lines, those of columnar formats by numbers.
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
# Files that data sets have beside their data. They are not read as a part of a directory or glob.
COMPANION_STEMS = ("readme", "license", "licence", "notice", "citation", "changelog", "copying", "checksums")
COMPANION_NAMES = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json")
COMPANION_ENDINGS = (".md", ".rst", ".py", ".ipynb", ".yaml", ".yml", ".sha256", ".md5", ".png", ".jpg", ".pdf")
ARROW_STATE = "state.json"  # written by datasets beside .arrow files


@dataclass(frozen=True)
class InputFile:
    """One input file.

    Attributes:
        path: path of the file.
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
    """Find the files of each input.

    Args:
        inputs: files, directories and globs.
        row_mib: size limit of one row in MiB.

    Returns:
        One list of files per input, sorted by name.

    Raises:
        DataError: inputs have no file, an empty file, a format that is not supported, or several formats. One line per
            input.
    """
    found, problems = [], []
    for name in inputs:
        try:
            found.append([dataclasses.replace(file, row_bytes=row_mib << 20) for file in _files_of(name)])
        except DataError as error:  # noqa: PERF203 - report all inputs together
            problems.append(str(error))
    if problems:
        raise DataError("\n".join(problems))
    return found


def companion_files(name: str) -> list[Path]:
    """Return the files in a directory or glob that accompany its data and are not read, sorted by name."""
    return _companions(_all_files_of(name)) if not Path(name).is_file() else []


def _companions(files: list[Path]) -> list[Path]:
    """Return those of `files` that accompany data, such as README.md; none if all of them do."""
    beside_arrow = any(path.suffix == ".arrow" for path in files)
    found = [
        path
        for path in files
        if path.name.lower() in COMPANION_NAMES
        or path.name.partition(".")[0].lower() in COMPANION_STEMS
        or path.suffix.lower() in COMPANION_ENDINGS
        or (beside_arrow and path.name == ARROW_STATE)
    ]
    return found if len(found) < len(files) else []


def _all_files_of(name: str) -> list[Path]:
    """Return the files of a directory, without hidden ones, or of a glob, sorted by name."""
    if Path(name).is_dir():
        return sorted(entry for entry in Path(name).iterdir() if entry.is_file() and not entry.name.startswith("."))
    return sorted(Path(match) for match in glob.glob(name, recursive=True) if Path(match).is_file())  # noqa: PTH207


def _files_of(name: str) -> list[InputFile]:
    """Return the files of one input, sorted by name."""
    path = Path(name)
    if path.is_file():
        return [_input_file(path)]
    if (missing := missing_input(name)) is not None:
        raise DataError(missing)
    files = _all_files_of(name)
    if not files and path.is_dir():
        inside = ", ".join(sorted(entry.name for entry in path.iterdir() if entry.is_dir()))
        hint = f", only directories ({inside}); specify one of them, or '{name}/**/*' for all" if inside else ""
        raise DataError(f"--input {name}: the directory contains no file{hint or '; specify one that does'}")
    if not files:
        raise DataError(f"--input {name}: no file matches; check the pattern and put it in quotes")

    companions = set(_companions(files))
    files = [entry for entry in files if entry not in companions]
    extensions = Counter("".join(_endings(entry)) or "no extension" for entry in files)
    if len({_endings(entry)[0] for entry in files}) > 1:
        listing = ", ".join(f"{count} {ending}" for ending, count in sorted(extensions.items()))
        raise DataError(
            f"--input {name}: contains files of several formats ({listing}); select those of one format with a glob"
        )
    return [_input_file(entry) for entry in files]


def _endings(path: Path) -> tuple[str, str]:
    """Return ('.jsonl', '.gz') of rows.jsonl.gz; an empty text for an extension that is missing."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        return (suffixes[-2] if len(suffixes) > 1 else "", suffixes[-1])
    return (suffixes[-1] if suffixes else "", "")


def _input_file(path: Path) -> InputFile:
    """Return the description of one file; see `find_input_files` for the errors."""
    ending, packed = _endings(path)
    kind = FORMATS.get(ending)
    if kind is None or (packed and kind not in TEXT_FORMATS):
        readable = ", ".join(FORMATS) + "; text formats also with " + " or ".join(COMPRESSIONS)
        raise DataError(
            f"--input {path}: {(ending + packed) or 'a file without an extension'} is not supported; use {readable}"
        )
    size = path.stat().st_size
    if size == 0:
        raise DataError(f"--input {path}: the file is empty; check that it was written or downloaded completely")
    return InputFile(path, kind, COMPRESSIONS.get(packed), size)
