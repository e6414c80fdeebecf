"""One pack taken apart for showing: its samples, the trained stretches in them, its padding.

slot             0  1  2  3  4  5  6  7
input_ids        a0 a1 a2 b0 b1 b2 .  .
labels           -  -  a2 -  b1 b2 -  -
samples          a: read a0 a1, trained a2     b: read b0, trained b1 b2     padding: 2 slots
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from mindspeed_llm.boundaries import IGNORED, count_trailing, ends_after_end_tokens, segment_ends, trailing_padding
from mindspeed_llm.errors import ConfigError, DataError
from mindspeed_llm.indexed_dataset import Manifest, PackedFiles, manifest_path
from mindspeed_llm.tokenization import Tokenizer

Ints = NDArray[np.int32]


@dataclass(frozen=True)
class TokenSpan:
    """Tokens in a row that are all trained, or all only read, as text."""

    text: str
    tokens: int
    trained: bool


@dataclass(frozen=True)
class SampleView:
    """One sample.

    Attributes:
        start: its first slot.
    """

    start: int
    stretches: list[TokenSpan]

    @property
    def tokens(self) -> int:
        return sum(stretch.tokens for stretch in self.stretches)

    @property
    def trained(self) -> int:
        return sum(stretch.tokens for stretch in self.stretches if stretch.trained)


@dataclass(frozen=True)
class PackView:
    """One pack.

    Attributes:
        number, packs: which one, of how many.
        padding: slots that hold no token: at its end, and after samples with --pad-to-multiple-of.
        note: what the files do not tell about boundaries; empty if nothing.
    """

    number: int
    packs: int
    samples: list[SampleView]
    padding: int
    note: str = ""

    @property
    def tokens(self) -> int:
        return sum(sample.tokens for sample in self.samples)

    @property
    def trained(self) -> int:
        return sum(sample.trained for sample in self.samples)


def view_pack(files: PackedFiles, number: int, tokenizer: Tokenizer | None) -> PackView:
    """The pack `number` of `files`, as text, or as ids without a tokenizer.

    Raises:
        ConfigError: there is no such pack.
        DataError: it holds ids that the tokenizer does not have.
    """
    if number >= len(files):
        least = "the files hold none" if len(files) == 0 else f"the last one is {len(files) - 1}"
        raise ConfigError(f"--pack {number}: there is no such pack, {least}")
    ids, mask, labels = files.input_ids[number], files.attention_mask[number], files.labels[number]
    manifest = files.manifest
    used = len(ids) - _padding(ids, mask, labels, _pad_id(manifest, tokenizer))
    if (
        tokenizer is not None
        and used
        and not 0 <= int(ids[:used].min()) <= int(ids[:used].max()) < tokenizer.vocab_size
    ):
        raise DataError(
            f"{files.input_ids.bin_path}: pack {number} holds ids beyond the tokenizer's {tokenizer.vocab_size:,}; "
            "name the tokenizer that made the files"
        )
    ends, note = _ends(ids[:used], mask[:used], manifest, tokenizer)
    slots = [(start, end) for start, end in pairwise([0, *ends]) if mask[start] != 0]  # not padding between samples
    padded = manifest is not None and manifest.neat and manifest.pad_to_multiple_of > 1
    behind = files.slot_padding(number).tolist() if padded else [0] * len(slots)
    samples = [
        SampleView(start, _stretches(ids[start : end - pad], labels[start : end - pad], tokenizer))
        for (start, end), pad in zip(slots, behind, strict=True)
    ]
    return PackView(number, len(files), samples, len(ids) - sum(sample.tokens for sample in samples), note)


def check_tokenizer(files: PackedFiles, tokenizer: Tokenizer) -> None:
    """Raises:
    ConfigError: the manifest names another tokenizer.
    """
    if files.manifest is not None and files.manifest.tokenizer.sha256 != tokenizer.sha256:
        raise ConfigError(
            f"{manifest_path(files.prefix)}: the files were made with another tokenizer (its SHA-256 begins with "
            f"{files.manifest.tokenizer.sha256[:12]}, this one's with {tokenizer.sha256[:12]}); name that one"
        )


def _pad_id(manifest: Manifest | None, tokenizer: Tokenizer | None) -> int | None:
    if manifest is not None:
        return manifest.tokenizer.pad_id
    return None if tokenizer is None else tokenizer.pad_id


def _padding(ids: Ints, mask: Ints, labels: Ints, pad_id: int | None) -> int:
    """Slots of the trailing padding: mask 0, or pad ids that are not trained (plain files of MindSpeed-LLM)."""
    if pad_id is not None and (mask == 1).all():
        return trailing_padding(ids, labels, pad_id)
    return count_trailing(mask == 0)


def _ends(ids: Ints, mask: Ints, manifest: Manifest | None, tokenizer: Tokenizer | None) -> tuple[list[int], str]:
    """Return where each sample ends, and a note on what the files do not tell."""
    whole = [len(ids)] if len(ids) else []
    if manifest is not None and not manifest.packed:
        return whole, ""
    if (manifest is not None and manifest.neat) or (mask.size and int(mask.max()) > 1):
        return segment_ends(mask).tolist(), ""
    eos_id = manifest.tokenizer.eod_id if manifest is not None else (tokenizer.eos_id if tokenizer else None)
    if eos_id is None or (manifest is not None and manifest.eod_inside_sample):
        return whole, "plain packs (no --neat-pack): where a sample ends cannot be told from the files"
    ends = ends_after_end_tokens(ids, eos_id)
    note = "plain packs (no --neat-pack): a sample is taken to end after each end token"
    return [*ends, *(whole if ends[-1:] != whole else [])], note


def _stretches(ids: Ints, labels: Ints, tokenizer: Tokenizer | None) -> list[TokenSpan]:
    trained = labels != IGNORED
    found = []
    for start, end in pairwise([0, *segment_ends(trained).tolist()]):
        piece = ids[start:end].tolist()
        text = " ".join(map(str, piece)) if tokenizer is None else tokenizer.decode(piece)
        found.append(TokenSpan(text, end - start, bool(trained[start])))
    return found
