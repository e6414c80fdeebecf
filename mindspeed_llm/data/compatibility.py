"""Check that the packed files match the command line.

The manifest is compared with the flags (manifest/expected_files.py). Without a manifest only the lengths of the
documents and the values of the attention mask can be compared.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence

import numpy as np

from mindspeed_llm.indexed_dataset import PackedFiles
from mindspeed_llm.manifest import DescribedFiles, ExpectedFiles, FileKind, blend_problems, differences

PROBED_PACKS = 256
"""Number of packs whose attention mask is read to detect neat packs if there is no manifest."""


def detect_file_kind(files: PackedFiles, seq_length: int) -> FileKind:
    """Return the kind of the files, from the manifest or, without one, from lengths and attention masks.

    Args:
        files: the opened files.
        seq_length: expected length of a pack; decides for files with a single document.
    """
    if files.manifest is not None:
        return FileKind.of(files.manifest)
    lengths = files.attention_mask.lengths
    # All packs have the same length, so documents of different lengths are unpacked samples. A single document is a
    # pack only if it has the expected length.
    same = len(lengths) > 0 and bool((lengths == lengths[0]).all())
    packed = same and (len(lengths) > 1 or int(lengths[0]) == seq_length)
    # A plain pack has 1 on all tokens, so a 2 in any mask means numbered samples. A neat pack may hold a single sample,
    # therefore several packs are read, but not all of them: the files may be large.
    probed = range(min(len(lengths), PROBED_PACKS))
    return FileKind(packed, packed and any(int(files.attention_mask[number].max()) > 1 for number in probed))


def find_problems(several: Sequence[PackedFiles], expected: ExpectedFiles) -> list[str]:
    """Return all differences between the datasets and the command line, and reasons why they cannot be blended.

    Args:
        several: the opened files of each dataset.
        expected: requirements of the command line.

    Returns:
        One line per problem, with the solution. Empty if the datasets can be used.
    """
    described = [_describe(files, expected.seq_length) for files in several]
    problems = []
    for files, description in zip(several, described, strict=True):
        problems += [line for _, line in differences(description, expected)]
        if not description.kind.packed:
            problems += _sample_length_problems(files, expected.seq_length)
    return [*problems, *blend_problems(described)]


def _describe(files: PackedFiles, seq_length: int) -> DescribedFiles:
    """Describe opened files for the comparison; the length of the packs is that of the files."""
    kind = detect_file_kind(files, seq_length)
    lengths = files.attention_mask.lengths
    pack_length = int(lengths[0]) if kind.packed and len(lengths) else None
    return DescribedFiles(files.prefix, kind, pack_length, files.manifest)


def _sample_length_problems(files: PackedFiles, seq_length: int) -> Iterator[str]:
    """Yield the problem of an unpacked sample that is too long."""
    lengths = files.attention_mask.lengths
    if not len(lengths):
        return
    number = int(np.argmax(lengths))
    longest = int(lengths[number])
    if longest > seq_length:
        yield (
            f"--seq-length {seq_length}: sample {number} of {files.prefix} has {longest} tokens; "
            f"use --seq-length {longest}, or preprocess again with --seq-length {seq_length}"
        )


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
