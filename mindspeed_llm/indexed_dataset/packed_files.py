"""The set of files that one preprocessing wrote, opened together and checked against its manifest."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mindspeed_llm.boundaries import padding_after_samples
from mindspeed_llm.errors import DataError
from mindspeed_llm.indexed_dataset.hash_verification import HashedFile, verify_files
from mindspeed_llm.indexed_dataset.idx_header import PREPROCESS_AGAIN
from mindspeed_llm.indexed_dataset.indexed_reader import IndexedReader
from mindspeed_llm.indexed_dataset.manifest import Manifest
from mindspeed_llm.storage.hashing import FileDigest

COLUMNS = ("input_ids", "attention_mask", "labels")


def column_prefix(prefix: str | Path, column: str) -> Path:
    """Path of one column's files, without .bin or .idx."""
    return Path(f"{prefix}_packed_{column}_document")


def manifest_path(prefix: str | Path) -> Path:
    """Path of the manifest."""
    return Path(f"{prefix}_packed_manifest.json")


@dataclass(frozen=True)
class PackedFiles:
    """Packed files (or files of one sample to a document: `manifest.packed` is false), ready to be read.

        i-th pack:  input_ids[i]       5  7  2  9  2  0      labels are not shifted, -100 is not trained;
                    attention_mask[i]  1  1  1  2  2  0      neat packs number their samples, padding is 0
                    labels[i]       -100  7  2 -100 2 -100

    Attributes:
        manifest: None where there is none (files of MindSpeed-LLM): what the bytes can tell has then been checked.
    """

    prefix: Path
    manifest: Manifest | None
    input_ids: IndexedReader
    attention_mask: IndexedReader
    labels: IndexedReader

    def __len__(self) -> int:
        """The number of packs, or of samples in files that are not packed."""
        return len(self.input_ids)

    @property
    def seq_length(self) -> int | None:
        """The one length that every sequence has; None if they differ, or there is none."""
        lengths = self.input_ids.lengths
        same = len(lengths) > 0 and bool((lengths == lengths[0]).all())
        return int(lengths[0]) if same else None

    @classmethod
    def open(cls, prefix: str | Path) -> PackedFiles:
        """Open and check the files of `prefix`; without a manifest, with one warning.

        Raises:
            DataError: a file is missing, damaged, unfinished, or does not fit the others or the manifest.
        """
        path = manifest_path(prefix)
        manifest = Manifest.read(path) if path.exists() else None
        if manifest is not None and manifest.state != "complete":
            raise DataError(
                f"{path}: the files of this prefix are not complete (the run that wrote them was cut off, "
                "or is still running); run the same preprocess_data.py command again"
            )
        columns = [IndexedReader(column_prefix(prefix, column)) for column in COLUMNS]
        files = cls(Path(prefix), manifest, *columns)
        files._check_columns()
        if manifest is not None:
            files._check_manifest(manifest)
        else:
            warnings.warn(
                f"{prefix}: no {path.name} beside the files, so tokenizer, template and sequence length "
                "cannot be checked against the command",
                stacklevel=2,
            )
        return files

    def _check_columns(self) -> None:
        first = self.input_ids
        for other in (self.attention_mask, self.labels):
            if len(other) != len(first):
                raise DataError(
                    f"{other.idx_path}: {len(other)} sequences, but {first.idx_path.name} has {len(first)}: "
                    "the files are not of one run; run preprocess_data.py again"
                )
            differs = other.lengths != first.lengths
            if differs.any():
                number = int(differs.argmax())
                raise DataError(
                    f"{other.idx_path}: sequence {number} has {other.lengths[number]} tokens, {first.lengths[number]} "
                    f"in {first.idx_path.name}: the files are not of one run; run preprocess_data.py again"
                )
            other.share_index(first)

    def _check_manifest(self, manifest: Manifest) -> None:
        path = manifest_path(self.prefix)
        for file in self.hashed_files():
            size = file.path.stat().st_size
            if size != file.facts.size:
                raise DataError(
                    f"{file.path}: {size} bytes, but {path.name} says {file.facts.size}: {PREPROCESS_AGAIN}"
                )
        if manifest.packs != len(self):
            raise DataError(f"{path}: says {manifest.packs} packs, the files have {len(self)}: {PREPROCESS_AGAIN}")
        if manifest.packed and len(self) and self.seq_length != manifest.seq_length:
            raise DataError(
                f"{self.input_ids.idx_path}: packs must have exactly {manifest.seq_length} tokens, "
                f"as {path.name} says: {PREPROCESS_AGAIN}"
            )

    def hashed_files(self) -> list[HashedFile]:
        """The six files with what the manifest says of them; none without one. They may have been renamed together."""
        if self.manifest is None:
            return []
        listed = []
        for column in COLUMNS:
            for ending in ("bin", "idx"):
                file = Path(f"{column_prefix(self.prefix, column)}.{ending}")
                known = [
                    facts
                    for name, facts in self.manifest.files.items()
                    if name.endswith(f"_packed_{column}_document.{ending}")
                ]
                if len(known) != 1:
                    raise DataError(f"{manifest_path(self.prefix)}: says nothing of {file.name}: {PREPROCESS_AGAIN}")
                listed.append(HashedFile(file, known[0]))
        return listed

    def slot_padding(self, number: int) -> NDArray[np.int64]:
        """Return how many slots of padding each sample of neat pack `number` has at its end; int64 [samples]."""
        pad = None if self.manifest is None else self.manifest.tokenizer.pad_id
        multiple = 1 if self.manifest is None else self.manifest.pad_to_multiple_of
        columns = self.input_ids[number], self.attention_mask[number], self.labels[number]
        return padding_after_samples(*columns, pad, multiple)

    def fingerprint(self) -> dict[Path, str]:
        """What tells two copies of the files apart, quickly: file → SHA-256.

        The manifest's, which holds the hashes of all the others; without one the index files', and sizes of the rest.
        """
        path = manifest_path(self.prefix)
        if self.manifest is not None:
            return {path: FileDigest.of(path).sha256}
        found = {}
        for column in COLUMNS:
            prefix = column_prefix(self.prefix, column)
            index, data = Path(f"{prefix}.idx"), Path(f"{prefix}.bin")
            found[index] = FileDigest.of(index).sha256
            found[data] = f"{data.stat().st_size} bytes"
        return found

    def verify_hashes(self) -> None:
        """Read all six files and compare their SHA-256 with the manifest's, however long it takes.

        Raises:
            DataError: a file differs, or there is no manifest to compare with.
        """
        if self.manifest is None:
            raise DataError(f"{manifest_path(self.prefix)}: no such file, so there are no hashes to compare with")
        verify_files(self.hashed_files())
