"""Write document files in Megatron's format."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mindspeed_llm.indexed_dataset.file_set_writer import FileSetWriter
from mindspeed_llm.manifest import document_manifest_path, document_prefix

# Megatron's limit for 2 bytes per token (DType.optimal_dtype): a vocabulary of at least this size takes 4 bytes.
VOCABULARY_OF_INT32 = 65500


def token_dtype(vocabulary: int) -> np.dtype[Any]:
    """Return the type that Megatron writes token ids in: 2 bytes for small vocabularies, else 4.

    Args:
        vocabulary: number of tokens of the tokenizer.
    """
    return np.dtype(np.uint16 if vocabulary < VOCABULARY_OF_INT32 else np.int32)


class DocumentFilesWriter(FileSetWriter):
    """Write PREFIX_KEY_document.{bin,idx} and the manifest.

        with DocumentFilesWriter(prefix, "text", token_dtype(vocabulary)) as out:
            for ...:
                out.add_documents(tokens, lengths)
            out.commit(manifest)

    Args:
        prefix: --output-prefix; its directory is created if necessary.
        key: --json-keys.
        dtype: type of the tokens.

    Raises:
        DataError: The disk is full, the directory cannot be written, or another run is writing these files.
    """

    def __init__(self, prefix: str | Path, key: str, dtype: npt.DTypeLike) -> None:
        final = document_prefix(prefix, key)
        lock = final.with_name(f".{final.name}.lock")
        super().__init__(Path(prefix), [final], document_manifest_path(final), lock, dtype)

    def add_documents(self, tokens: npt.NDArray[Any], lengths: npt.NDArray[np.int32]) -> None:
        """Write several documents of one sequence each, in the background; the caller must not change the arrays.

        Args:
            tokens: tokens of all documents; integers [tokens].
            lengths: number of tokens of each document; int32 [documents].
        """
        self._submit([functools.partial(self._writers[0].add_sequences, tokens, lengths)])
