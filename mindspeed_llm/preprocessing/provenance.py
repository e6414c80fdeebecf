"""Identify what tokens and packed files are made from: input files, tokenizer files and the code of this program."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mindspeed_llm.storage.hashing import FileDigest, sha256_of, sha256_of_blocks

PACKAGE = Path(__file__).parents[1]
TOKEN_PACKAGES = ("rawdata", "chat", "tokenization", "preprocessing")  # packages that make tokens
LIBRARIES = ("tokenizers", "sentencepiece", "jinja2")  # libraries that tokens may depend on
# Files of a tokenizer's folder.
DESCRIPTIONS = ("*.json", "*.jinja", "additional_chat_templates/*.jinja", "*.model", "*.txt")
LARGEST_DESCRIPTION = 1 << 26


def key_of(values: dict[str, Any]) -> str:
    """Return a hash of values that JSON can represent."""
    return sha256_of(json.dumps(values, sort_keys=True).encode())


def file_digest(path: Path) -> dict[str, Any]:
    """Return size and SHA-256 of a file."""
    return dataclasses.asdict(FileDigest.of(path))


def file_identity(path: Path) -> list[Any]:
    """Return path, size, times of change and inode of a file, which differ if the file was changed or replaced."""
    facts = path.stat()
    times = [facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino]
    return [str(path), str(path.absolute()), str(path.resolve()), *times]


def code_hash(packages: Sequence[str]) -> str:
    """Return a hash of the source code of some packages.

    Args:
        packages: names of packages inside mindspeed_llm.
    """
    paths = (path for package in packages for path in sorted((PACKAGE / package).rglob("*.*")))
    return sha256_of_blocks(path.read_bytes() for path in paths if path.suffix in (".py", ".json"))


def tokenizer_descriptions(folder: str | None) -> dict[str, Any]:
    """Return the hashes of the small files of a tokenizer's folder: several of them declare added tokens."""
    if folder is None:
        return {}
    paths = sorted(path for pattern in DESCRIPTIONS for path in Path(folder).glob(pattern) if path.is_file())
    return {
        str(path.relative_to(folder)): file_digest(path) for path in paths if path.stat().st_size <= LARGEST_DESCRIPTION
    }
