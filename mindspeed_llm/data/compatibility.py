"""Do the packed files fit the command? The manifest tells; without one, what the bytes tell."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mindspeed_llm.indexed_dataset import PackedFiles

PROBED_PACKS = 256
"""Packs looked at where no manifest says whether the mask numbers samples."""


@dataclass(frozen=True)
class ExpectedFiles:
    """What the command line says about the files. None: nothing, so nothing is compared.

    Attributes:
        seq_length: slots of a pack, or the most of an unpacked sample.
        neat_pack: --neat-pack.
        split_at_end_tokens: --reset-position-ids or --reset-attention-mask: plain packs are separated at end tokens.
        template: name of --prompt-type.
        tokenizer_sha256, vocabulary: hash and size of the tokenizer of --tokenizer-name-or-path or --tokenizer-model.
    """

    seq_length: int
    neat_pack: bool
    split_at_end_tokens: bool
    template: str | None = None
    tokenizer_sha256: str | None = None
    vocabulary: int | None = None


@dataclass(frozen=True)
class FileKind:
    """How files were made: packed or one sample per document; if packed, neat or not."""

    packed: bool
    neat: bool

    @property
    def name(self) -> str:
        """What a message calls it."""
        return "unpacked samples" if not self.packed else "neat packs" if self.neat else "plain packs"


def detect_file_kind(files: PackedFiles, seq_length: int) -> FileKind:
    """From the manifest; without one, from the lengths (packs are all equally long) and the first masks."""
    if files.manifest is not None:
        return FileKind(files.manifest.packed, files.manifest.packed and files.manifest.neat)
    lengths = files.attention_mask.lengths
    same = len(lengths) > 0 and bool((lengths == lengths[0]).all())
    packed = same and (len(lengths) > 1 or int(lengths[0]) == seq_length)
    probed = range(min(len(lengths), PROBED_PACKS))
    return FileKind(packed, packed and any(int(files.attention_mask[number].max()) > 1 for number in probed))


def dataset_problems(files: PackedFiles, expected: ExpectedFiles) -> list[str]:
    """Everything about one data set that does not fit the command, one line each, naming the flag."""
    kind = detect_file_kind(files, expected.seq_length)
    problems = [*_kind_problems(files, kind, expected), *_length_problems(files, kind, expected)]
    if files.manifest is not None:
        problems += _manifest_problems(files, kind, expected)
    return problems


def _kind_problems(files: PackedFiles, kind: FileKind, expected: ExpectedFiles) -> Iterator[str]:
    if expected.neat_pack and not kind.neat:
        instead = "leave --neat-pack out" if not kind.packed else "leave --neat-pack out and separate at end tokens"
        yield (
            f"--neat-pack: {files.prefix} holds {kind.name}; preprocess with --pack --neat-pack, or {instead}"
            + (" (--reset-position-ids)" if kind.packed else "")
        )
    if kind.neat and not expected.neat_pack:
        yield f"{files.prefix} holds neat packs: add --neat-pack, or its samples would see one another"


def _length_problems(files: PackedFiles, kind: FileKind, expected: ExpectedFiles) -> Iterator[str]:
    lengths = files.attention_mask.lengths
    if not len(lengths):
        return
    if kind.packed and int(lengths[0]) != expected.seq_length:
        yield (
            f"--seq-length {expected.seq_length}: {files.prefix} was packed to {int(lengths[0])}; "
            f"use --seq-length {int(lengths[0])}, or preprocess again"
        )
    number = int(np.argmax(lengths))
    longest = int(lengths[number])
    if not kind.packed and longest > expected.seq_length:
        yield (
            f"--seq-length {expected.seq_length}: sample {number} of {files.prefix} has {longest} tokens; "
            f"use --seq-length {longest}, or preprocess again with --seq-length {expected.seq_length}"
        )


def _manifest_problems(files: PackedFiles, kind: FileKind, expected: ExpectedFiles) -> Iterator[str]:
    manifest = files.manifest
    assert manifest is not None
    made_with, template = manifest.tokenizer, manifest.template
    if expected.tokenizer_sha256 is not None and made_with.sha256 != expected.tokenizer_sha256:
        yield (
            f"--tokenizer-name-or-path: {files.prefix} was made with another tokenizer "
            f"({made_with.kind}, {made_with.vocab_size} tokens, SHA-256 {made_with.sha256[:12]}…, not "
            f"{expected.tokenizer_sha256[:12]}…); give that one, or preprocess again"
        )
    elif expected.vocabulary is not None and made_with.vocab_size != expected.vocabulary:
        yield (
            f"--tokenizer-name-or-path: it has {expected.vocabulary} tokens, the one that {files.prefix} was made with "
            f"{made_with.vocab_size}; give that one, or preprocess again"
        )
    if expected.template is not None and template is not None and template.name != expected.template:
        yield (
            f"--prompt-type {expected.template}: {files.prefix} was made with {template.name}; "
            f"use --prompt-type {template.name}, or preprocess again"
        )
    if kind.packed and not kind.neat and expected.split_at_end_tokens and manifest.eod_inside_sample:
        yield (
            f"--reset-position-ids: an end token occurs inside samples of {files.prefix}, which would be cut there; "
            f"preprocess with --pack --neat-pack and train with --neat-pack"
        )


def compatibility_problems(several: Sequence[PackedFiles], expected: ExpectedFiles) -> list[str]:
    """What keeps data sets from being trained together: one batch has one kind of pack and one end token."""
    problems = []
    first = several[0]
    for other in several[1:]:
        kinds = detect_file_kind(first, expected.seq_length), detect_file_kind(other, expected.seq_length)
        if kinds[0] != kinds[1]:
            problems.append(
                f"--data-path: {first.prefix} holds {kinds[0].name}, {other.prefix} {kinds[1].name}; "
                "preprocess both in the same way"
            )
    made = [(files, files.manifest) for files in several if files.manifest is not None]
    for files, manifest in made[1:]:
        if manifest.tokenizer.sha256 != made[0][1].tokenizer.sha256:
            problems.append(f"--data-path: {made[0][0].prefix} and {files.prefix} were made with different tokenizers")
    return problems


def warn_about_unknown_end_tokens(several: Sequence[PackedFiles], expected: ExpectedFiles) -> None:
    """Plain packs without a manifest: nobody knows whether end tokens only end samples. (Files without a manifest are
    warned of in general where they are opened.)"""
    unknown = [
        str(files.prefix)
        for files in several
        if files.manifest is None and detect_file_kind(files, expected.seq_length) == FileKind(packed=True, neat=False)
    ]
    if unknown and expected.split_at_end_tokens:
        warnings.warn(
            f"--reset-position-ids: samples of {', '.join(unknown)} that hold an end token before their last one will "
            "be cut there, and without a manifest it is not known whether any does",
            stacklevel=3,
        )
