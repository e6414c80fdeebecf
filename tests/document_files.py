"""Document files of random tokens, with or without a manifest, and what numpy makes of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tiny import VOCABULARY, manifest_of

from mindspeed_llm.indexed_dataset import DocumentFilesWriter
from mindspeed_llm.indexed_dataset.idx_header import CODE_OF_DTYPE, HEAD, MAGIC
from mindspeed_llm.manifest import DocumentInfo, document_manifest_path, document_prefix

EOD = 1


def random_documents(
    count: int, seed: int = 0, longest: int = 40, ended: bool = True, shortest: int = 1
) -> list[np.ndarray]:
    """Return documents of `shortest` … `longest` tokens; with `ended` the last of them is the end token."""
    draw = np.random.default_rng(seed)
    documents = []
    for _ in range(count):
        tokens = draw.integers(2, VOCABULARY, int(draw.integers(shortest, longest + 1)))
        documents.append(np.append(tokens, EOD) if ended and len(tokens) else tokens)
    return documents


def write_documents(prefix: Path, documents: Sequence[np.ndarray], dtype: type = np.uint16) -> str:
    """Write documents with a manifest. Return the path that --data-path names."""
    lengths = np.array([len(document) for document in documents], np.int32)
    tokens = int(lengths.sum())
    manifest = manifest_of(
        packed=False,
        neat=False,
        seq_length=int(lengths.max()),
        samples=len(documents),
        tokens=tokens,
        trained=tokens,
        packs=max(1, len(documents)),
    )
    ended = sum(len(document) > 0 and document[-1] == EOD for document in documents)
    with DocumentFilesWriter(prefix, "text", dtype) as out:
        out.add_documents(np.concatenate(documents).astype(np.int64), lengths)
        out.commit(dataclasses.replace(manifest, template=None, documents=DocumentInfo("text", int(ended))))
    return str(document_prefix(prefix, "text"))


def write_plain(prefix: Path, documents: Sequence[Sequence[np.ndarray]], dtype: type = np.int32) -> str:
    """Write documents of any number of sequences, as Megatron-LM's tool does: without a manifest."""
    sequences = [sequence for document in documents for sequence in document]
    lengths = np.array([len(sequence) for sequence in sequences], np.int32)
    pointers = (np.cumsum(lengths, dtype=np.int64) - lengths) * np.dtype(dtype).itemsize
    bounds = np.cumsum([0, *(len(document) for document in documents)]).astype(np.int64)
    header = HEAD.pack(MAGIC, 1, CODE_OF_DTYPE[np.dtype(dtype)], len(lengths), len(bounds))
    prefix.parent.mkdir(parents=True, exist_ok=True)
    path = document_prefix(prefix, "text")
    Path(f"{path}.idx").write_bytes(header + lengths.tobytes() + pointers.tobytes() + bounds.tobytes())
    Path(f"{path}.bin").write_bytes(b"".join(np.asarray(each).astype(dtype).tobytes() for each in sequences))
    assert not document_manifest_path(path).exists()
    return str(path)


def concatenated(documents: Sequence[np.ndarray]) -> np.ndarray:
    """Return all tokens, with an end token after each document that has tokens and does not end with one."""
    parts = [document if document[-1] == EOD else np.append(document, EOD) for document in documents if len(document)]
    return np.concatenate(parts)
