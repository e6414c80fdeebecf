"""Packed files of one prefix, opened together and checked against each other and against their manifest."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mindspeed_llm.boundaries import padding_after_samples
from mindspeed_llm.errors import DataError
from mindspeed_llm.indexed_dataset.file_set import FileSet, read_manifest
from mindspeed_llm.indexed_dataset.idx_header import PREPROCESS_AGAIN
from mindspeed_llm.indexed_dataset.indexed_reader import IndexedReader
from mindspeed_llm.manifest import COLUMNS, Manifest, column_prefix, manifest_path


@dataclass(frozen=True)
class PackedFiles(FileSet):
    """Packed files of one prefix, or files with one unpacked sample per document (`manifest.packed` is false).

        pack i:  input_ids[i]          5     7     2     9     2     0
                 attention_mask[i]     1     1     1     2     2     0    neat packs: number of the sample, padding is 0
                 labels[i]          -100     7     2  -100     2  -100    not shifted, -100 is not trained

    Attributes:
        prefix: path without _packed_….
        manifest: the manifest, or None if there is none, as for files of MindSpeed-LLM.
        input_ids: reader of the token ids.
        attention_mask: reader of the attention mask.
        labels: reader of the labels.
    """

    prefix: Path
    manifest: Manifest | None
    input_ids: IndexedReader
    attention_mask: IndexedReader
    labels: IndexedReader

    def __len__(self) -> int:
        """Return the number of packs, or of samples in files that are not packed."""
        return len(self.input_ids)

    @property
    def manifest_path(self) -> Path:
        """Path of the manifest, whether it exists or not."""
        return manifest_path(self.prefix)

    @property
    def pairs(self) -> Mapping[Path, str]:
        """Pairs of the three columns."""
        return {column_prefix(self.prefix, column): str(column_prefix("", column)) for column in COLUMNS}

    @property
    def seq_length(self) -> int | None:
        """Length of all sequences in slots; None if the lengths differ, or there is no sequence."""
        lengths = self.input_ids.lengths
        same = len(lengths) > 0 and bool((lengths == lengths[0]).all())
        return int(lengths[0]) if same else None

    @classmethod
    def open(cls, prefix: str | Path) -> PackedFiles:
        """Open and check the files of a prefix. Warn if there is no manifest.

        Args:
            prefix: path without _packed_….

        Raises:
            DataError: A file is missing, damaged or not complete, or does not match the other files or the manifest.
        """
        path = manifest_path(prefix)
        manifest = read_manifest(path)
        columns = [IndexedReader(column_prefix(prefix, column)) for column in COLUMNS]
        files = cls(Path(prefix), manifest, *columns)
        files._check_columns()
        if manifest is not None:
            files._check_manifest(manifest)
        else:
            warnings.warn(
                f"{prefix}: no {path.name} beside the files, so tokenizer, template and sequence length "
                "cannot be compared with the command line",
                stacklevel=2,
            )
        return files

    def _check_columns(self) -> None:
        """Check that the three columns have sequences of the same lengths."""
        first = self.input_ids
        for other in (self.attention_mask, self.labels):
            if len(other) != len(first):
                raise DataError(
                    f"{other.idx_path}: {len(other)} sequences, but {first.idx_path.name} has {len(first)}: "
                    "the files are from different runs; run preprocess_data.py again"
                )
            differs = other.lengths != first.lengths
            if differs.any():
                number = int(differs.argmax())
                raise DataError(
                    f"{other.idx_path}: sequence {number} has {other.lengths[number]} tokens, {first.lengths[number]} "
                    f"in {first.idx_path.name}: the files are from different runs; run preprocess_data.py again"
                )
            # The lengths are equal, so one index for the three columns is enough.
            other.share_index(first)

    def _check_manifest(self, manifest: Manifest) -> None:
        """Compare file sizes, number of packs and their length with the manifest, without reading .bin files."""
        path = manifest_path(self.prefix)
        self.check_sizes()
        if manifest.packs != len(self):
            raise DataError(
                f"{path}: records {manifest.packs} packs, but the files have {len(self)}: {PREPROCESS_AGAIN}"
            )
        if manifest.packed and len(self) and self.seq_length != manifest.seq_length:
            raise DataError(
                f"{self.input_ids.idx_path}: packs must have exactly {manifest.seq_length} tokens, "
                f"according to {path.name}: {PREPROCESS_AGAIN}"
            )

    def slot_padding(self, number: int) -> NDArray[np.int64]:
        """Return the number of slots of padding at the end of each sample of neat pack `number`; int64 [samples]."""
        pad = None if self.manifest is None else self.manifest.tokenizer.pad_id
        multiple = 1 if self.manifest is None else self.manifest.pad_to_multiple_of
        columns = self.input_ids[number], self.attention_mask[number], self.labels[number]
        return padding_after_samples(*columns, pad, multiple)
