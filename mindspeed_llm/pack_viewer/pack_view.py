"""Divide one pack into samples, trained and untrained spans, and padding.

slot             0  1  2  3  4  5  6  7
input_ids        a0 a1 a2 b0 b1 b2 .  .
labels           -  -  a2 -  b1 b2 -  -
samples          a: not trained a0 a1, trained a2     b: not trained b0, trained b1 b2     padding: 2 slots
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from mindspeed_llm.boundaries import IGNORE_INDEX, count_trailing, ends_after_end_tokens, segment_ends, trailing_padding
from mindspeed_llm.errors import ConfigError, DataError
from mindspeed_llm.indexed_dataset import PackedFiles
from mindspeed_llm.manifest import Manifest, manifest_path
from mindspeed_llm.tokenization import Tokenizer

Ints = NDArray[np.int32]


@dataclass(frozen=True)
class TokenSpan:
    """Consecutive tokens of a sample that are all trained or all not trained.

    Attributes:
        text: decoded text, or the token ids separated by spaces.
        tokens: number of tokens.
        trained: whether the labels are not -100.
    """

    text: str
    tokens: int
    trained: bool


@dataclass(frozen=True)
class SampleView:
    """One sample of a pack.

    Attributes:
        start: first slot of the sample.
        spans: spans of the sample in order.
    """

    start: int
    spans: list[TokenSpan]

    @property
    def tokens(self) -> int:
        """Number of tokens of the sample."""
        return sum(span.tokens for span in self.spans)

    @property
    def trained(self) -> int:
        """Number of trained tokens of the sample."""
        return sum(span.tokens for span in self.spans if span.trained)


@dataclass(frozen=True)
class PackView:
    """One pack.

    Attributes:
        number: number of the pack, from 0.
        packs: number of packs in the files.
        samples: samples in order.
        padding: number of slots without a token: at the end, and after samples with --pad-to-multiple-of.
        virtual_tokens: number of slots that are reserved for virtual tokens.
        note: notice if the files do not define where samples end; empty otherwise.
    """

    number: int
    packs: int
    samples: list[SampleView]
    padding: int
    note: str = ""
    virtual_tokens: int = 0

    @property
    def tokens(self) -> int:
        """Number of tokens of all samples."""
        return sum(sample.tokens for sample in self.samples)

    @property
    def trained(self) -> int:
        """Number of trained tokens of all samples."""
        return sum(sample.trained for sample in self.samples)


def view_pack(files: PackedFiles, number: int, tokenizer: Tokenizer | None) -> PackView:
    """Read one pack and divide it into samples and spans.

    Args:
        files: packed files.
        number: number of the pack, from 0.
        tokenizer: tokenizer that made the files, to decode text; without it the token ids are shown.

    Raises:
        ConfigError: there is no such pack.
        DataError: the pack contains ids that the tokenizer does not have, or cannot be read.
    """
    if number >= len(files):
        available = "the files hold no packs" if len(files) == 0 else f"the last pack is {len(files) - 1}"
        raise ConfigError(f"--pack {number}: there is no such pack; {available}")
    ids, mask, labels = files.input_ids[number], files.attention_mask[number], files.labels[number]
    manifest = files.manifest
    used = len(ids) - _padding(ids, mask, labels, _pad_id(manifest, tokenizer))
    if (
        tokenizer is not None
        and used
        and not 0 <= int(ids[:used].min()) <= int(ids[:used].max()) < tokenizer.vocab_size
    ):
        raise DataError(
            f"{files.input_ids.bin_path}: pack {number} holds ids beyond the {tokenizer.vocab_size:,} ids of the "
            "tokenizer; give the tokenizer that made the files"
        )
    ends, note = _ends(ids[:used], mask[:used], manifest, tokenizer)
    # Mask 0 between samples is padding of the pack, not a sample.
    slots = [(start, end) for start, end in pairwise([0, *ends]) if mask[start] != 0]
    padded = manifest is not None and manifest.neat and manifest.pad_to_multiple_of > 1
    # With --pad-to-multiple-of the padding of a sample has the sample's number in the mask; it is found by its ids.
    sample_padding = files.slot_padding(number).tolist() if padded else [0] * len(slots)
    virtual = 0 if manifest is None else manifest.virtual_tokens
    samples = [
        SampleView(
            start + virtual, _spans(ids[start + virtual : end - pad], labels[start + virtual : end - pad], tokenizer)
        )
        for (start, end), pad in zip(slots, sample_padding, strict=True)
    ]
    reserved = virtual * len(samples)
    padding = len(ids) - reserved - sum(sample.tokens for sample in samples)
    return PackView(number, len(files), samples, padding, note, reserved)


def check_tokenizer(files: PackedFiles, tokenizer: Tokenizer) -> None:
    """Check that a tokenizer is the one that made the files, if there is a manifest.

    Args:
        files: packed files.
        tokenizer: tokenizer of the command line.

    Raises:
        ConfigError: the manifest contains the hash of another tokenizer.
    """
    if files.manifest is not None and files.manifest.tokenizer.sha256 != tokenizer.sha256:
        raise ConfigError(
            f"{manifest_path(files.prefix)}: the files were made with another tokenizer (SHA-256 "
            f"{files.manifest.tokenizer.sha256[:12]}…, not {tokenizer.sha256[:12]}…); give the tokenizer that made them"
        )


def _pad_id(manifest: Manifest | None, tokenizer: Tokenizer | None) -> int | None:
    """Return the id of the padding token, from the manifest if there is one."""
    if manifest is not None:
        return manifest.tokenizer.pad_id
    return None if tokenizer is None else tokenizer.pad_id


def _padding(ids: Ints, mask: Ints, labels: Ints, pad_id: int | None) -> int:
    """Return the number of padding slots at the end of a pack: mask 0, or pad ids that are not trained."""
    # Plain packs of MindSpeed-LLM have mask 1 on padding too.
    if pad_id is not None and (mask == 1).all():
        return trailing_padding(ids, labels, pad_id)
    return count_trailing(mask == 0)


def _ends(ids: Ints, mask: Ints, manifest: Manifest | None, tokenizer: Tokenizer | None) -> tuple[list[int], str]:
    """Return where each sample ends, and a notice if the files do not define it."""
    single = [len(ids)] if len(ids) else []
    if manifest is not None and not manifest.packed:
        return single, ""
    if (manifest is not None and manifest.neat) or (mask.size and int(mask.max()) > 1):
        return segment_ends(mask).tolist(), ""
    eos_id = manifest.tokenizer.eod_id if manifest is not None else (tokenizer.eos_id if tokenizer else None)
    if eos_id is None or (manifest is not None and manifest.eod_inside_sample):
        return single, "plain packs (no --neat-pack): the files do not define where a sample ends"
    ends = ends_after_end_tokens(ids, eos_id)
    note = "plain packs (no --neat-pack): each end token is assumed to end a sample"
    # The last sample may have no end token.
    return [*ends, *(single if ends[-1:] != single else [])], note


def _spans(ids: Ints, labels: Ints, tokenizer: Tokenizer | None) -> list[TokenSpan]:
    """Return the spans of one sample; ids and labels are [tokens of the sample]."""
    trained = labels != IGNORE_INDEX
    spans = []
    for start, end in pairwise([0, *segment_ends(trained).tolist()]):
        piece = ids[start:end].tolist()
        text = " ".join(map(str, piece)) if tokenizer is None else tokenizer.decode(piece)
        spans.append(TokenSpan(text, end - start, bool(trained[start])))
    return spans
