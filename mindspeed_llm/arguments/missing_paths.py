"""Messages about single paths that do not exist, shared by the programs and by the packages that open the files."""

from __future__ import annotations

import errno
import glob
import os
from pathlib import Path

from mindspeed_llm.arguments.data_arguments import TOKENIZER_FILES
from mindspeed_llm.manifest import COLUMNS, column_prefix, document_prefix, has_document_files, has_packed_files
from mindspeed_llm.storage.hub_names import download_advice
from mindspeed_llm.storage.safe_open import read_file_bytes


def missing_input(name: str) -> str | None:
    """Return the message about an --input that does not exist; None if it does, or if it is a pattern.

    Args:
        name: a value of the flag.
    """
    if Path(name).is_file() or Path(name).is_dir() or glob.has_magic(name):
        return None
    return f"--input {name}: no such file or directory; check the path"


def missing_file(flag: str, file: str | None) -> str | None:
    """Return the message about a flag whose file does not exist; None if it does, or without a value.

    Args:
        flag: name of the flag.
        file: its value.
    """
    if file is None or Path(file).exists():
        return None
    return f"{flag} {file}: cannot be read ({os.strerror(errno.ENOENT)}); check the path"


def missing_directory(flag: str, folder: str | None) -> str | None:
    """Return the message about a flag whose directory does not exist; None if it does, or without a value.

    Args:
        flag: name of the flag.
        folder: its value.
    """
    if folder is None or Path(folder).is_dir():
        return None
    reason = "a file, not a directory" if Path(folder).is_file() else "no such directory"
    return f"{flag} {folder}: {reason}{download_advice(folder) or '; check the path'}"


def missing_tokenizer_folder(folder: str) -> str | None:
    """Return the message about a --tokenizer-name-or-path that is no directory; None if it is one.

    Args:
        folder: value of the flag.
    """
    named = f"--tokenizer-name-or-path {folder}"
    if Path(folder).is_dir():
        return None
    if Path(folder).is_file():
        return (
            f"{named}: a file; give its directory, or read a SentencePiece model with --tokenizer-type "
            f"GPTSentencePieceTokenizer --tokenizer-model {folder}"
        )
    advice = download_advice(folder, weights=False) or "; download the model's tokenizer files there"
    return f"{named}: no such directory{advice}"


def missing_tokenizer_files(folder: str) -> str | None:
    """Return the message about a --tokenizer-name-or-path that has no files of a tokenizer; None if it has some.

    Args:
        folder: value of the flag.
    """
    if (missing := missing_tokenizer_folder(folder)) is not None:
        return missing
    has_files = any((Path(folder) / name).is_file() for name in TOKENIZER_FILES)
    return None if has_files or _names_code(Path(folder)) else no_tokenizer_files(folder)


def no_tokenizer_files(folder: str) -> str:
    """Return the message about a directory without files of a tokenizer.

    Args:
        folder: value of --tokenizer-name-or-path.
    """
    return (
        f"--tokenizer-name-or-path {folder}: contains neither {' nor '.join(TOKENIZER_FILES)}; "
        "specify the directory that contains one of them"
    )


def _names_code(folder: Path) -> bool:
    """Return whether a tokenizer may be defined by its own code, which is refused with other advice."""
    try:
        return b'"auto_map"' in read_file_bytes(folder / "tokenizer_config.json")
    except OSError:
        return False


def missing_tokenizer_model(file: str) -> str | None:
    """Return the message about a --tokenizer-model that does not exist; None if it does.

    Args:
        file: value of the flag.
    """
    return None if Path(file).is_file() else f"--tokenizer-model {file}: no such file; check the path"


def missing_raw_data(flag: str, name: str, is_packed: bool) -> str | None:
    """Return the message about a data path that names neither raw data nor prepared files; None if there are such.

    Args:
        flag: flag of the path.
        name: the path.
        is_packed: whether the run reads packed files, rather than documents.
    """
    if has_packed_files(name) if is_packed else has_document_files(name):
        return None
    files = f"packed files {name}_packed_*" if is_packed else f"document files {name}.bin and .idx"
    return f"{flag} {name}: no such file or directory, and no {files}"


def missing_packs(prefix: str) -> str | None:
    """Return the message about a prefix without packed files, with advice; None if there are such files.

    Args:
        prefix: a value of --data-path.
    """
    if has_packed_files(prefix):
        return None
    if has_document_files(prefix):
        return f"{prefix}: holds documents; leave --is-instruction-dataset out"
    if Path(prefix).exists():
        return (
            f"{prefix}: no packed files; it is raw data: add --handler-name, such as AlpacaStyleInstructionHandler, to "
            "preprocess it"
        )
    return no_packs(prefix)


def no_packs(prefix: str) -> str:
    """Return the message about a prefix for which there are no files at all.

    Args:
        prefix: path without _packed_….
    """
    return f"{column_prefix(prefix, COLUMNS[0])}.idx: no such file; check the prefix, or run preprocess_data.py"


def missing_documents(prefix: str) -> str | None:
    """Return the message about a prefix without document files, with advice; None if there are such files.

    Args:
        prefix: a value of --data-path.
    """
    if has_document_files(prefix):
        return None
    without_ending = prefix.removesuffix(".bin").removesuffix(".idx")
    if without_ending != prefix and has_document_files(without_ending):
        return f"{prefix}: give the path without its ending, {without_ending}"
    if has_packed_files(prefix):
        return f"{prefix}: holds packed files; add --is-instruction-dataset, or name document files"
    if has_document_files(document_prefix(prefix, "text")):
        return f"{prefix}: no document files; give the complete name, {document_prefix(prefix, 'text')}"
    if Path(prefix).exists():
        return (
            f"{prefix}: no document files {prefix}.bin and .idx; it is raw data: add --handler-name "
            "GeneralPretrainHandler to preprocess it"
        )
    return (
        f"{prefix}: no document files {prefix}.bin and .idx; check the path (PREFIX_text_document), or run "
        "preprocess_data.py with --output-format document"
    )
