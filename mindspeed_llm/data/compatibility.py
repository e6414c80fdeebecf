"""Check that the packed files match the command line.

The manifest is compared with the flags. Without a manifest only the lengths of the documents and the values of the
attention mask can be compared.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mindspeed_llm.indexed_dataset import PackedFiles

PROBED_PACKS = 256
"""Number of packs whose attention mask is read to detect neat packs if there is no manifest."""


@dataclass(frozen=True)
class ExpectedFiles:
    """Properties of the packed files that the command line requires. A value of None is not compared.

    Attributes:
        seq_length: number of slots of a pack, or maximum length of an unpacked sample.
        neat_pack: --neat-pack.
        split_at_end_tokens: --reset-position-ids or --reset-attention-mask: plain packs are divided at end tokens.
        template: chat template of --prompt-type.
        tokenizer_sha256: hash of the tokenizer of --tokenizer-name-or-path or --tokenizer-model.
        vocabulary: vocabulary size of that tokenizer.
        virtual_tokens: --virtual-tokens: reserved slots at the beginning of each sample; 0 without virtual tokens.
    """

    seq_length: int
    neat_pack: bool
    split_at_end_tokens: bool
    template: str | None = None
    tokenizer_sha256: str | None = None
    vocabulary: int | None = None
    virtual_tokens: int = 0


@dataclass(frozen=True)
class FileKind:
    """Layout of packed files.

    Attributes:
        packed: True for packs, False for one sample per document.
        neat: whether the attention mask numbers the samples of a pack (--neat-pack).
    """

    packed: bool
    neat: bool

    @property
    def name(self) -> str:
        """Name for messages."""
        return "unpacked samples" if not self.packed else "neat packs" if self.neat else "plain packs"


def detect_file_kind(files: PackedFiles, seq_length: int) -> FileKind:
    """Return the kind of the files, from the manifest or, without one, from lengths and attention masks.

    Args:
        files: the opened files.
        seq_length: expected length of a pack; decides for files with a single document.
    """
    if files.manifest is not None:
        return FileKind(files.manifest.packed, files.manifest.packed and files.manifest.neat)
    lengths = files.attention_mask.lengths
    # All packs have the same length, so documents of different lengths are unpacked samples. A single document is a
    # pack only if it has the expected length.
    same = len(lengths) > 0 and bool((lengths == lengths[0]).all())
    packed = same and (len(lengths) > 1 or int(lengths[0]) == seq_length)
    # A plain pack has 1 on all tokens, so a 2 in any mask means numbered samples. A neat pack may hold a single sample,
    # therefore several packs are read, but not all of them: the files may be large.
    probed = range(min(len(lengths), PROBED_PACKS))
    return FileKind(packed, packed and any(int(files.attention_mask[number].max()) > 1 for number in probed))


def dataset_problems(files: PackedFiles, expected: ExpectedFiles) -> list[str]:
    """Return all differences between one dataset and the command line.

    Args:
        files: the opened files of the dataset.
        expected: requirements of the command line.

    Returns:
        One line per problem, with the flag and the solution. Empty if the dataset can be used.
    """
    kind = detect_file_kind(files, expected.seq_length)
    problems = [*_kind_problems(files, kind, expected), *_length_problems(files, kind, expected)]
    problems += _virtual_token_problems(files, expected)
    if files.manifest is not None:
        problems += _manifest_problems(files, kind, expected)
    return problems


def _kind_problems(files: PackedFiles, kind: FileKind, expected: ExpectedFiles) -> Iterator[str]:
    if expected.neat_pack and not kind.neat:
        instead = "remove --neat-pack" if not kind.packed else "remove --neat-pack and divide the packs at end tokens"
        yield (
            f"--neat-pack: {files.prefix} holds {kind.name}; preprocess with --pack --neat-pack, or {instead}"
            + (" (--reset-position-ids)" if kind.packed else "")
        )
    if kind.neat and not expected.neat_pack:
        yield f"{files.prefix} holds neat packs: add --neat-pack, or samples of one pack would attend to each other"


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


def _virtual_token_problems(files: PackedFiles, expected: ExpectedFiles) -> Iterator[str]:
    found, wanted = 0 if files.manifest is None else files.manifest.virtual_tokens, expected.virtual_tokens
    if found == wanted:
        return
    if not found:
        yield (
            f"--virtual-tokens {wanted}: {files.prefix} has no reserved slots for virtual tokens; preprocess again "
            f"with --virtual-tokens {wanted}"
        )
    elif not wanted:
        yield (
            f"{files.prefix} has slots for {found} virtual tokens in every sample; train with --tuning prefix, prompt "
            f"or p-tuning and --virtual-tokens {found}, or preprocess again without --virtual-tokens"
        )
    else:
        yield (
            f"--virtual-tokens {wanted}: {files.prefix} has slots for {found} virtual tokens in every sample; use "
            f"--virtual-tokens {found}, or preprocess again with --virtual-tokens {wanted}"
        )


def _manifest_problems(files: PackedFiles, kind: FileKind, expected: ExpectedFiles) -> Iterator[str]:
    manifest = files.manifest
    assert manifest is not None
    made_with, template = manifest.tokenizer, manifest.template
    if expected.tokenizer_sha256 is not None and made_with.sha256 != expected.tokenizer_sha256:
        yield (
            f"--tokenizer-name-or-path: {files.prefix} was made with another tokenizer "
            f"({made_with.kind}, {made_with.vocab_size} tokens, SHA-256 {made_with.sha256[:12]}…, not "
            f"{expected.tokenizer_sha256[:12]}…); use that tokenizer, or preprocess again"
        )
    elif expected.vocabulary is not None and made_with.vocab_size != expected.vocabulary:
        yield (
            f"--tokenizer-name-or-path: the tokenizer has {expected.vocabulary} tokens, but {files.prefix} was made "
            f"with a tokenizer of {made_with.vocab_size} tokens; use that tokenizer, or preprocess again"
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
    """Return the reasons why several datasets cannot be blended.

    A micro-batch has one kind of pack and one end token, so all datasets must agree in both.

    Args:
        several: the opened files of each dataset, at least one dataset.
        expected: requirements of the command line.

    Returns:
        One line per problem. Empty if the datasets can be blended.
    """
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
    """Warn about plain packs without a manifest that are divided at end tokens.

    Only the manifest records whether an end token occurs inside a sample. `PackedFiles.open` warns about missing
    manifests in general.

    Args:
        several: the opened files of each dataset.
        expected: requirements of the command line.
    """
    unknown = [
        str(files.prefix)
        for files in several
        if files.manifest is None and detect_file_kind(files, expected.seq_length) == FileKind(packed=True, neat=False)
    ]
    if unknown and expected.split_at_end_tokens:
        warnings.warn(
            f"--reset-position-ids: samples of {', '.join(unknown)} with an end token before their last token will be "
            "cut there; without a manifest it is not known whether there are such samples",
            stacklevel=3,
        )
