"""Write a set of packed files."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy.typing as npt

from mindspeed_llm.indexed_dataset.file_set_writer import FileSetWriter
from mindspeed_llm.manifest import COLUMNS, column_prefix, manifest_path


class PackedFilesWriter(FileSetWriter):
    """Write the six files and the manifest of one prefix.

        with PackedFilesWriter(prefix) as out:
            for ...:
                out.add(input_ids, attention_mask, labels)      # one pack, or one sample if not packed
            out.commit(manifest)

    Args:
        prefix: as for `PackedFiles.open`; its directory is created if necessary.

    Raises:
        DataError: The disk is full, the directory cannot be written, or another run is writing this prefix.
    """

    def __init__(self, prefix: str | Path) -> None:
        prefix = Path(prefix)
        finals = [column_prefix(prefix, column) for column in COLUMNS]
        lock = finals[0].with_name(f".{prefix.name}_packed.lock")
        super().__init__(prefix, finals, manifest_path(prefix), lock)

    def add(self, input_ids: npt.NDArray[Any], attention_mask: npt.NDArray[Any], labels: npt.NDArray[Any]) -> None:
        """Write one pack, or one sample of files that are not packed.

        Args:
            input_ids: token ids; integers [length].
            attention_mask: attention mask; integers [length].
            labels: labels, not shifted; integers [length].
        """
        assert len(input_ids) == len(attention_mask) == len(labels)
        self._wait()
        for writer, tokens in zip(self._writers, (input_ids, attention_mask, labels), strict=True):
            writer.add(tokens)

    def add_rows(self, input_ids: npt.NDArray[Any], attention_mask: npt.NDArray[Any], labels: npt.NDArray[Any]) -> None:
        """Write several packs, in the background; the caller must not change the arrays.

        Args:
            input_ids: token ids; integers [packs, seq_length].
            attention_mask: attention masks; integers [packs, seq_length].
            labels: labels, not shifted; integers [packs, seq_length].
        """
        assert input_ids.shape == attention_mask.shape == labels.shape
        columns = (input_ids, attention_mask, labels)
        pairs = zip(self._writers, columns, strict=True)
        self._submit([functools.partial(writer.add_rows, tokens) for writer, tokens in pairs])
