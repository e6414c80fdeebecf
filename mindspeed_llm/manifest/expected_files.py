"""Compare manifests with the packed files that a command line requires.

The parser of the training compares before torch or numpy is imported, and `mindspeed_llm.data` again when the files are
opened, with what it measures where there is no manifest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mindspeed_llm.manifest.manifest import Manifest


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

    @classmethod
    def of(cls, manifest: Manifest) -> FileKind:
        """Return the kind of the files of a manifest."""
        return cls(manifest.packed, manifest.packed and manifest.neat)

    @property
    def name(self) -> str:
        """Name for messages."""
        return "unpacked samples" if not self.packed else "neat packs" if self.neat else "plain packs"


@dataclass(frozen=True)
class DescribedFiles:
    """What is known about the packed files of one prefix.

    Attributes:
        prefix: a value of --data-path.
        kind: kind of the files.
        pack_length: number of slots of each pack; None for unpacked samples and for files without packs.
        manifest: their manifest, or None.
    """

    prefix: Path
    kind: FileKind
    pack_length: int | None
    manifest: Manifest | None

    @classmethod
    def by_manifest(cls, prefix: Path, manifest: Manifest) -> DescribedFiles:
        """Describe files by their manifest alone.

        Args:
            prefix: a value of --data-path.
            manifest: manifest of the files.
        """
        length = manifest.seq_length if manifest.packed and manifest.packs else None
        return cls(prefix, FileKind.of(manifest), length, manifest)


def differences(files: DescribedFiles, expected: ExpectedFiles) -> Iterator[tuple[str, str]]:
    """Yield (flag, error message with the solution) for each difference between files and command line.

    Args:
        files: the files of one prefix.
        expected: requirements of the command line.
    """
    yield from _kind_differences(files, expected)
    if files.pack_length is not None and files.pack_length != expected.seq_length:
        yield (
            "--seq-length",
            f"--seq-length {expected.seq_length}: {files.prefix} was packed to {files.pack_length}; "
            f"use --seq-length {files.pack_length}, or preprocess again",
        )
    found = 0 if files.manifest is None else files.manifest.virtual_tokens
    if found != expected.virtual_tokens:
        yield "--virtual-tokens", _other_virtual_tokens(files.prefix, found, expected.virtual_tokens)
    if files.manifest is not None:
        yield from _origin_differences(files, files.manifest, expected)


def _kind_differences(files: DescribedFiles, expected: ExpectedFiles) -> Iterator[tuple[str, str]]:
    """Yield the differences in --neat-pack."""
    flag, kind = "--neat-pack", files.kind
    if expected.neat_pack and not kind.neat:
        instead = "remove --neat-pack" if not kind.packed else "remove --neat-pack and divide the packs at end tokens"
        end = " (--reset-position-ids)" if kind.packed else ""
        yield (
            flag,
            f"{flag}: {files.prefix} holds {kind.name}; preprocess with --pack --neat-pack, or {instead}{end}",
        )
    if kind.neat and not expected.neat_pack:
        yield flag, f"{files.prefix} holds neat packs: add {flag}, or samples of one pack would attend to each other"


def _other_virtual_tokens(prefix: Path, found: int, wanted: int) -> str:
    """Return the message about files with another number of reserved slots than --virtual-tokens."""
    if not found:
        return (
            f"--virtual-tokens {wanted}: {prefix} has no reserved slots for virtual tokens; preprocess again "
            f"with --virtual-tokens {wanted}"
        )
    if not wanted:
        return (
            f"{prefix} has slots for {found} virtual tokens in every sample; train with --tuning prefix, prompt "
            f"or p-tuning and --virtual-tokens {found}, or preprocess again without --virtual-tokens"
        )
    return (
        f"--virtual-tokens {wanted}: {prefix} has slots for {found} virtual tokens in every sample; use "
        f"--virtual-tokens {found}, or preprocess again with --virtual-tokens {wanted}"
    )


def _origin_differences(
    files: DescribedFiles, manifest: Manifest, expected: ExpectedFiles
) -> Iterator[tuple[str, str]]:
    """Yield the differences in tokenizer, chat template and end tokens."""
    made_with, template, prefix = manifest.tokenizer, manifest.template, files.prefix
    if expected.tokenizer_sha256 is not None and made_with.sha256 != expected.tokenizer_sha256:
        yield (
            "--tokenizer-name-or-path",
            f"--tokenizer-name-or-path: {prefix} was made with another tokenizer "
            f"({made_with.kind}, {made_with.vocab_size} tokens, SHA-256 {made_with.sha256[:12]}…, not "
            f"{expected.tokenizer_sha256[:12]}…); use that tokenizer, or preprocess again",
        )
    elif expected.vocabulary is not None and made_with.vocab_size != expected.vocabulary:
        yield (
            "--tokenizer-name-or-path",
            f"--tokenizer-name-or-path: the tokenizer has {expected.vocabulary} tokens, but {prefix} was made "
            f"with a tokenizer of {made_with.vocab_size} tokens; use that tokenizer, or preprocess again",
        )
    if expected.template is not None and template is not None and template.name != expected.template:
        yield (
            "--prompt-type",
            f"--prompt-type {expected.template}: {prefix} was made with {template.name}; "
            f"use --prompt-type {template.name}, or preprocess again",
        )
    is_plain = files.kind == FileKind(packed=True, neat=False)
    if is_plain and expected.split_at_end_tokens and manifest.eod_inside_sample:
        yield (
            "--reset-position-ids",
            f"--reset-position-ids: an end token occurs inside samples of {prefix}, which would be cut there; "
            f"preprocess with --pack --neat-pack and train with --neat-pack",
        )


def blend_problems(several: Sequence[DescribedFiles]) -> list[str]:
    """Return the reasons why several datasets cannot be blended.

    A micro-batch has one kind of pack and one end token, so all datasets must agree in both.

    Args:
        several: the files of each dataset.

    Returns:
        One line per problem. Empty if the datasets can be blended.
    """
    problems = [
        f"--data-path: {several[0].prefix} holds {several[0].kind.name}, {other.prefix} {other.kind.name}; "
        "preprocess both in the same way"
        for other in several[1:]
        if other.kind != several[0].kind
    ]
    made = [(files.prefix, files.manifest.tokenizer) for files in several if files.manifest is not None]
    problems += [
        f"--data-path: {made[0][0]} and {prefix} were made with different tokenizers"
        for prefix, tokenizer in made[1:]
        if tokenizer.sha256 != made[0][1].sha256
    ]
    return problems
