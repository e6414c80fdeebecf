"""Manifest of packed files and document files, and the names of their files. No numpy: --check-only reads them.

manifest      contents of the files, how they were made, and their hashes
file_names    --output-prefix or --data-path → the files
"""

from mindspeed_llm.manifest.file_names import (
    COLUMNS,
    ENDINGS,
    column_prefix,
    document_manifest_path,
    document_prefix,
    has_document_files,
    has_packed_files,
    manifest_path,
)
from mindspeed_llm.manifest.manifest import (
    DocumentInfo,
    Histograms,
    Manifest,
    PackingInfo,
    RowCounts,
    SourceFile,
    TemplateInfo,
    TokenizerInfo,
)

__all__ = [
    "COLUMNS",
    "ENDINGS",
    "DocumentInfo",
    "Histograms",
    "Manifest",
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
]
