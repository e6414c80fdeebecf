"""Document files: one .bin/.idx pair with the tokens of documents, as Megatron-LM's preprocessing writes it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mindspeed_llm.errors import DataError
from mindspeed_llm.indexed_dataset.document_index import DocumentIndex
from mindspeed_llm.indexed_dataset.file_set import FileSet, read_manifest
from mindspeed_llm.indexed_dataset.idx_header import PREPROCESS_AGAIN
from mindspeed_llm.manifest import Manifest, document_manifest_path


@dataclass(frozen=True)
class DocumentFiles(FileSet):
    """Document files of one prefix.

    Attributes:
        prefix: path without .bin or .idx.
        manifest: the manifest, or None if there is none, as for files of Megatron-LM.
        index: reader of the documents.
    """

    prefix: Path
    manifest: Manifest | None
    index: DocumentIndex

    def __len__(self) -> int:
        """Return the number of documents."""
        return self.index.documents

    @property
    def manifest_path(self) -> Path:
        """Path of the manifest, whether it exists or not."""
        return document_manifest_path(self.prefix)

    @property
    def pairs(self) -> Mapping[Path, str]:
        """The only pair; any name may have been given to it."""
        return {self.prefix: ""}

    @classmethod
    def open(cls, prefix: str | Path) -> DocumentFiles:
        """Open and check the files of a prefix. Warn if there is no manifest.

        Args:
            prefix: path without .bin or .idx.

        Raises:
            DataError: A file is missing, damaged or not complete, or does not match the other file or the manifest, or
                no document has tokens.
        """
        path = document_manifest_path(prefix)
        manifest = read_manifest(path)
        files = cls(Path(prefix), manifest, DocumentIndex(prefix))
        if manifest is not None:
            files._check_manifest(manifest)
        else:
            warnings.warn(
                f"{prefix}: no {path.name} beside the files, so the tokenizer cannot be compared with the command line",
                stacklevel=2,
            )
        if not files.index.tokens:
            raise DataError(
                f"{files.index.idx_path}: its {len(files)} documents have no tokens; preprocess texts that are not "
                "empty"
            )
        return files

    def _check_manifest(self, manifest: Manifest) -> None:
        """Compare file sizes and number of documents with the manifest, without reading the .bin file."""
        path = document_manifest_path(self.prefix)
        if manifest.documents is None:
            raise DataError(f'{path}: not a manifest of document files (it has no "documents"): {PREPROCESS_AGAIN}')
        self.check_sizes()
        if (manifest.samples, manifest.tokens) != (len(self), self.index.tokens):
            raise DataError(
                f"{path}: records {manifest.samples} documents of {manifest.tokens} tokens, but the files have "
                f"{len(self)} of {self.index.tokens}: {PREPROCESS_AGAIN}"
            )
