"""Packed files: Megatron's IndexedDataset format (.bin, .idx), and the manifest that says what is in them."""

from __future__ import annotations

from mindspeed_llm.indexed_dataset.hash_cache import HashCache
from mindspeed_llm.indexed_dataset.hash_verification import HashedFile, check_files
from mindspeed_llm.indexed_dataset.indexed_reader import IndexedReader
from mindspeed_llm.indexed_dataset.indexed_writer import IndexedWriter
from mindspeed_llm.indexed_dataset.manifest import (
    Counts,
    Histograms,
    Manifest,
    PackingFacts,
    SourceFile,
    TemplateFacts,
    TokenizerFacts,
)
from mindspeed_llm.indexed_dataset.packed_files import COLUMNS, PackedFiles, column_prefix, manifest_path
from mindspeed_llm.indexed_dataset.packed_files_writer import PackedFilesWriter

__all__ = [
    "COLUMNS",
    "Counts",
    "HashCache",
    "HashedFile",
    "Histograms",
    "IndexedReader",
    "IndexedWriter",
    "Manifest",
    "PackedFiles",
    "PackedFilesWriter",
    "PackingFacts",
    "SourceFile",
    "TemplateFacts",
    "TokenizerFacts",
    "check_files",
    "column_prefix",
    "manifest_path",
]
