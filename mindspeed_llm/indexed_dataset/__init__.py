"""Packed files: Megatron's IndexedDataset format (.bin, .idx) with a manifest that describes the contents.

`PackedFiles` opens and checks a set of files, `PackedFilesWriter` writes a set as one transaction, and `verify_files`
compares files with their SHA-256 in the manifest.
"""

from __future__ import annotations

from mindspeed_llm.indexed_dataset.hash_cache import HashCache
from mindspeed_llm.indexed_dataset.hash_verification import HashedFile, verify_files
from mindspeed_llm.indexed_dataset.indexed_reader import IndexedReader
from mindspeed_llm.indexed_dataset.indexed_writer import IndexedWriter
from mindspeed_llm.indexed_dataset.manifest import (
    Histograms,
    Manifest,
    PackingInfo,
    RowCounts,
    SourceFile,
    TemplateInfo,
    TokenizerInfo,
)
from mindspeed_llm.indexed_dataset.packed_files import (
    COLUMNS,
    PackedFiles,
    column_prefix,
    has_packed_files,
    manifest_path,
)
from mindspeed_llm.indexed_dataset.packed_files_writer import PackedFilesWriter

__all__ = [
    "COLUMNS",
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
    "has_packed_files",
    "manifest_path",
    "verify_files",
]
