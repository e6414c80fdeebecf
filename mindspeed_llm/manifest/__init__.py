"""Manifest of packed files and document files, and the names of their files. No numpy: --check-only reads them.

manifest          contents of the files, how they were made, and their hashes
file_names        --output-prefix or --data-path → the files
expected_files    comparison of manifests with a command line
"""

from mindspeed_llm.manifest.expected_files import (
    DescribedFiles,
    ExpectedFiles,
    FileKind,
    blend_problems,
    differences,
)
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
    "DescribedFiles",
    "DocumentInfo",
    "ExpectedFiles",
    "FileKind",
    "Histograms",
    "Manifest",
    "PackingInfo",
    "RowCounts",
    "SourceFile",
    "TemplateInfo",
    "TokenizerInfo",
    "blend_problems",
    "column_prefix",
    "differences",
    "document_manifest_path",
    "document_prefix",
    "has_document_files",
    "has_packed_files",
    "manifest_path",
]
