"""Packed files: Megatron's IndexedDataset format (.bin, .idx), and the manifest that says what is in them."""

from __future__ import annotations

from mindspeed_llm.indexed.hash_cache import HashCache
from mindspeed_llm.indexed.hash_check import HashedFile, check_files
from mindspeed_llm.indexed.manifest import (
    Counts,
    Histograms,
    Manifest,
    PackingFacts,
    SourceFile,
    TemplateFacts,
    TokenizerFacts,
)
from mindspeed_llm.indexed.packed import COLUMNS, PackedFiles, column_prefix, manifest_path
from mindspeed_llm.indexed.publish import PackedFilesWriter
from mindspeed_llm.indexed.reader import IndexedReader
from mindspeed_llm.indexed.writer import IndexedWriter

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
