"""Packed files and document files: Megatron's IndexedDataset format (.bin, .idx) with a manifest.

`PackedFiles` and `DocumentFiles` open and check a set of files, `PackedFilesWriter` and `DocumentFilesWriter` write a
set as one transaction, and `verify_files` compares files with their SHA-256 in the manifest. The manifest and the names
of the files are in the package `manifest`, which needs no numpy.
"""

from __future__ import annotations

from typing import TypeAlias

from mindspeed_llm.indexed_dataset.document_files import DocumentFiles
from mindspeed_llm.indexed_dataset.document_files_writer import DocumentFilesWriter, token_dtype
from mindspeed_llm.indexed_dataset.document_index import DocumentIndex
from mindspeed_llm.indexed_dataset.hash_cache import HashCache
from mindspeed_llm.indexed_dataset.hash_verification import HashedFile, verify_files
from mindspeed_llm.indexed_dataset.indexed_reader import IndexedReader
from mindspeed_llm.indexed_dataset.indexed_writer import IndexedWriter
from mindspeed_llm.indexed_dataset.packed_files import PackedFiles
from mindspeed_llm.indexed_dataset.packed_files_writer import PackedFilesWriter

DataFiles: TypeAlias = PackedFiles | DocumentFiles

__all__ = [
    "DataFiles",
    "DocumentFiles",
    "DocumentFilesWriter",
    "DocumentIndex",
    "HashCache",
    "HashedFile",
    "IndexedReader",
    "IndexedWriter",
    "PackedFiles",
    "PackedFilesWriter",
    "token_dtype",
    "verify_files",
]
