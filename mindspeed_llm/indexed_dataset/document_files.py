"""Document files: one .bin/.idx pair with the tokens of documents, as Megatron-LM's preprocessing writes it."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

from mindspeed_llm.errors import DataError
from mindspeed_llm.indexed_dataset.document_index import DocumentIndex
from mindspeed_llm.indexed_dataset.hash_verification import HashedFile, verify_files
from mindspeed_llm.indexed_dataset.idx_header import PREPROCESS_AGAIN
from mindspeed_llm.indexed_dataset.manifest import Manifest
from mindspeed_llm.storage.hashing import FileDigest

ENDINGS = ("bin", "idx")


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


@dataclass(frozen=True)
class DocumentFiles:
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
        manifest = Manifest.read(path) if path.exists() else None
        # Before the files are opened: those of a set that is being replaced may be missing or not match each other.
        if manifest is not None and manifest.state != "complete":
            raise DataError(
                f"{path}: the files of this prefix are not complete (the run that writes them was interrupted, "
                "or is still running); run the same preprocess_data.py command again"
            )
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
        for file in self.hashed_files():
            size = file.path.stat().st_size
            if size != file.facts.size:
                raise DataError(
                    f"{file.path}: {size} bytes, but {file.facts.size} according to {path.name}: {PREPROCESS_AGAIN}"
                )
        if (manifest.samples, manifest.tokens) != (len(self), self.index.tokens):
            raise DataError(
                f"{path}: records {manifest.samples} documents of {manifest.tokens} tokens, but the files have "
                f"{len(self)} of {self.index.tokens}: {PREPROCESS_AGAIN}"
            )

    def hashed_files(self) -> list[HashedFile]:
        """Return both files with their sizes and hashes from the manifest.

        Returns:
            The files, or an empty list without a manifest.

        Raises:
            DataError: The manifest does not list a file.
        """
        if self.manifest is None:
            return []
        listed = []
        for ending in ENDINGS:
            # Compared without the prefix: the files may have been renamed after they were written.
            known = [facts for name, facts in self.manifest.files.items() if name.endswith(f".{ending}")]
            if len(known) != 1:
                raise DataError(
                    f"{document_manifest_path(self.prefix)}: does not list {self.prefix.name}.{ending}: "
                    f"{PREPROCESS_AGAIN}"
                )
            listed.append(HashedFile(Path(f"{self.prefix}.{ending}"), known[0]))
        return listed

    def fingerprint(self) -> dict[Path, str]:
        """Compute values that differ if two copies of the files differ, without reading all data.

        Returns:
            SHA-256 of the manifest, which contains the hashes of both files. Without a manifest, SHA-256 of the .idx
            file and size of the .bin file ("N bytes").
        """
        if self.manifest is not None:
            path = document_manifest_path(self.prefix)
            return {path: FileDigest.of(path).sha256}
        index, data = self.index.idx_path, self.index.bin_path
        return {index: FileDigest.of(index).sha256, data: f"{data.stat().st_size} bytes"}

    def verify_hashes(self) -> None:
        """Read both files and compare their SHA-256 with the manifest, without a time limit.

        Raises:
            DataError: A file differs, or there is no manifest.
        """
        if self.manifest is None:
            raise DataError(
                f"{document_manifest_path(self.prefix)}: no such file, so there are no hashes to compare with"
            )
        verify_files(self.hashed_files())
