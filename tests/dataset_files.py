"""Packed files of few slots, with or without a manifest, for tests of the data sets."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from mindspeed_llm.indexed_dataset import PackedFilesWriter
from mindspeed_llm.manifest import Manifest, PackingInfo, RowCounts, TemplateInfo, TokenizerInfo, manifest_path

S = 8
E, P = 2, 0


HASH = "a" * 64


def rows_of(packs: int, kind: str) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Return packs of two samples of three tokens and two slots of padding; pack n contains the ids 10 n … 10 n + 9."""
    rows = []
    for n in range(packs):
        a, b = 10 * n + 10, 10 * n + 13
        ids = np.array([a, a + 1, E, b, b + 1, E, P, P], dtype=np.int32)
        mask = np.array([1, 1, 1, 2, 2, 2, 0, 0] if kind == "neat" else [1, 1, 1, 1, 1, 1, 0, 0], dtype=np.int32)
        labels = np.array([-100, a + 1, E, -100, b + 1, E, -100, -100], dtype=np.int32)
        size = 3 + n % 4 if kind == "unpacked" else S
        rows.append((ids[:size], np.ones(size, np.int32) if kind == "unpacked" else mask, labels[:size]))
    return rows


def manifest_of(packs: int, kind: str, **changes: Any) -> Manifest:
    manifest = Manifest(
        packed=kind != "unpacked",
        neat=kind == "neat",
        seq_length=S,
        append_eod=False,
        eod_inside_sample=False,
        tokenizer=TokenizerInfo("PretrainedFromHF", HASH, vocab_size=1000, pad_id=P, eod_id=E),
        template=TemplateInfo("qwen", "b" * 64),
        handler="AlpacaStyleInstructionHandler",
        sources=[],
        counts=RowCounts(),
        samples=2 * packs,
        tokens=6 * packs,
        trained_tokens=4 * packs,
        packs=packs,
        fill=0.75,
        packing=PackingInfo("full and mixed", 1234),
    )
    return dataclasses.replace(manifest, **changes)


def write(prefix: Path, packs: int, kind: str = "neat", manifest: bool = True, **changes: Any) -> str:
    with PackedFilesWriter(prefix) as out:
        for row in rows_of(packs, kind):
            out.add(*row)
        out.commit(manifest_of(packs, kind, **changes))
    if not manifest:
        manifest_path(prefix).unlink()
    return str(prefix)
