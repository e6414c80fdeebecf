"""Packed files and document files: Megatron's IndexedDataset format (.bin, .idx) with a manifest.

`PackedFiles` and `DocumentFiles` open and check a set of files, `PackedFilesWriter` and `DocumentFilesWriter` write a
set as one transaction, and `verify_files` compares files with their SHA-256 in the manifest. The manifest and the names
of the files are those of `manifest`, which code without numpy imports directly.
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
from mindspeed_llm.manifest import (
    COLUMNS,
    DocumentInfo,
    Histograms,
    Manifest,
    PackingInfo,
    RowCounts,
    SourceFile,
    TemplateInfo,
    TokenizerInfo,
    column_prefix,
    document_manifest_path,
    document_prefix,
    has_document_files,
    has_packed_files,
    manifest_path,
)

DataFiles: TypeAlias = PackedFiles | DocumentFiles

__all__ = [
    "COLUMNS",
    "DataFiles",
    "DocumentFiles",
    "DocumentFilesWriter",
    "DocumentIndex",
    "DocumentInfo",
    "HashCache",
    "HashedFile",
    "Histograms",
    "IndexedReader",
    "IndexedWriter",
    "Manifest",
    "PackedFiles",
    "PackedFilesWriter",
    "PackingInfo",
    "RowCounts",
    "SourceFile",
    "TemplateInfo",
    "TokenizerInfo",
    "column_prefix",
    "document_manifest_path",
    "document_prefix",
    "has_document_files",
    "has_packed_files",
    "manifest_path",
    "token_dtype",
    "verify_files",
]
