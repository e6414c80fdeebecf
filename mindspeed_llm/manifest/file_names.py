"""Names of the files of a prefix: packed files, document files and their manifests."""

from __future__ import annotations

from pathlib import Path

ENDINGS = ("bin", "idx")
COLUMNS = ("input_ids", "attention_mask", "labels")


def column_prefix(prefix: str | Path, column: str) -> Path:
    """Return the path of the files of one column, without .bin or .idx.

    Args:
        prefix: --output-prefix of the preprocessing.
        column: one of COLUMNS.
    """
    return Path(f"{prefix}_packed_{column}_document")


def manifest_path(prefix: str | Path) -> Path:
    """Return the path of the manifest of the packed files `prefix`."""
    return Path(f"{prefix}_packed_manifest.json")


def has_packed_files(prefix: str | Path) -> bool:
    """Return whether any packed file of a prefix exists."""
    columns = [column_prefix(prefix, column) for column in COLUMNS]
    files = [manifest_path(prefix)] + [Path(f"{column}.{suffix}") for column in columns for suffix in ENDINGS]
    return any(file.exists() for file in files)


def document_prefix(prefix: str | Path, key: str) -> Path:
    """Return the path of document files without .bin or .idx, which is what --data-path names.

    Args:
        prefix: --output-prefix of the preprocessing.
        key: --json-keys of the preprocessing.
    """
    return Path(f"{prefix}_{key}_document")


def document_manifest_path(prefix: str | Path) -> Path:
    """Return the path of the manifest of document files.

    Args:
        prefix: path of the files without .bin or .idx.
    """
    return Path(f"{prefix}_manifest.json")


def has_document_files(prefix: str | Path) -> bool:
    """Return whether any document file of a prefix exists."""
    files = [document_manifest_path(prefix), *(Path(f"{prefix}.{ending}") for ending in ENDINGS)]
    return any(file.is_file() for file in files)
