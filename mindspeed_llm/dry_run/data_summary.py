"""Summarize the data and tokenizer of a planned job. Missing files are reported, not refused."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mindspeed_llm.arguments.data_arguments import DataArguments, TokenizerArguments, parse_data_path
from mindspeed_llm.arguments.training_arguments import TrainingArguments
from mindspeed_llm.data import SPLITS, Datasets, build_datasets
from mindspeed_llm.indexed_dataset import DataFiles
from mindspeed_llm.manifest import Manifest, has_document_files, has_packed_files
from mindspeed_llm.tokenization import Tokenizer, load_tokenizer


@dataclass(frozen=True)
class DatasetSummary:
    """Statistics of one data set, from its manifest.

    Attributes:
        prefix: prefix of the files.
        packs: number of packs; for files made without --pack, of samples.
        samples: number of samples.
        fill: tokens ÷ slots, with every pack padded to the sequence length.
        trained: trained tokens ÷ tokens.
    """

    prefix: str
    packs: int
    samples: int
    fill: float
    trained: float

    @classmethod
    def of(cls, prefix: str, manifest: Manifest) -> DatasetSummary:
        """Compute the statistics from the counts of a manifest.

        Args:
            prefix: prefix of the files.
            manifest: manifest of the files.
        """
        slots = manifest.packs * manifest.seq_length
        return cls(
            prefix=prefix,
            packs=manifest.packs,
            samples=manifest.samples,
            fill=manifest.tokens / slots if slots else 0.0,
            trained=manifest.trained_tokens / manifest.tokens if manifest.tokens else 0.0,
        )


@dataclass(frozen=True)
class DataSummary:
    """Data of a planned job, as far as it exists on this machine.

    Attributes:
        prefixes: prefixes that the command names.
        kind: 'neat packs', 'plain packs', 'unpacked samples' or 'blocks'; None without data.
        packs: number of packs or blocks of each split that has any.
        figures: statistics of each data set that has a manifest.
        tokenizer: description of the source of the vocabulary.
        vocabulary: number of tokens of the tokenizer, or of the tokenizer that made the data; None without both.
        tokenizer_sha256: hash of the tokenizer; None if it does not exist here.
        datasets: the opened splits; None if the files do not exist here.
        loaded_tokenizer: the tokenizer itself; None if it does not exist here.
    """

    prefixes: tuple[str, ...]
    kind: str | None
    packs: dict[str, int]
    figures: tuple[DatasetSummary, ...]
    tokenizer: str
    vocabulary: int | None
    tokenizer_sha256: str | None = None
    datasets: Datasets | None = None
    loaded_tokenizer: Tokenizer | None = None

    @property
    def files(self) -> tuple[DataFiles, ...]:
        """The opened data sets; empty if the files do not exist here."""
        return tuple(self.datasets.files) if self.datasets is not None else ()

    @property
    def fill(self) -> float | None:
        """Fill of all data sets that have a manifest; None without one."""
        packs = sum(summary.packs for summary in self.figures)
        return sum(summary.fill * summary.packs for summary in self.figures) / packs if packs else None


def summarize_data(
    data: DataArguments, tokenizer_flags: TokenizerArguments, training: TrainingArguments, virtual_tokens: int = 0
) -> DataSummary:
    """Open and check the data and the tokenizer that exist, exactly as a new run does.

    Args:
        data: flags of the data sets.
        tokenizer_flags: flags of the tokenizer.
        training: flags for the seed and for evaluation.
        virtual_tokens: reserved slots at the beginning of each sample, which the data must have.

    Raises:
        UserError: the tokenizer or the data is damaged or does not fit the command.
    """
    tokenizer, description = _load_tokenizer(tokenizer_flags)
    prefixes = _prefixes(data)
    # If any file exists, `build_datasets` reports the missing ones as errors: the set is incomplete.
    exists = has_packed_files if data.is_instruction_dataset else has_document_files
    if not any(exists(prefix) for prefix in prefixes):
        vocabulary, sha256 = (tokenizer.vocab_size, tokenizer.sha256) if tokenizer else (None, None)
        return DataSummary(prefixes, None, {}, (), description, vocabulary, sha256)
    datasets = build_datasets(
        data,
        training.seed,
        evaluate=training.eval_iters > 0,
        tokenizer_sha256=tokenizer.sha256 if tokenizer else None,
        vocabulary=tokenizer.vocab_size if tokenizer else None,
        eod=tokenizer.eos_id if tokenizer else None,
        virtual_tokens=virtual_tokens,
    )
    manifests = [(str(files.prefix), files.manifest) for files in datasets.files if files.manifest is not None]
    if tokenizer is None and manifests:
        description += f"; {manifests[0][0]} was made with one of {manifests[0][1].tokenizer.vocab_size:,} tokens"
    return DataSummary(
        prefixes=prefixes,
        kind=datasets.kind.name,
        packs={name: len(split) for name in SPLITS if (split := datasets.split(name)) is not None},
        # Blocks of documents have no padding, and all of their tokens are trained.
        figures=tuple(DatasetSummary.of(*each) for each in manifests) if data.is_instruction_dataset else (),
        tokenizer=description,
        vocabulary=datasets.tokenizer_vocabulary(tokenizer),
        tokenizer_sha256=tokenizer.sha256 if tokenizer else None,
        datasets=datasets,
        loaded_tokenizer=tokenizer,
    )


def _load_tokenizer(flags: TokenizerArguments) -> tuple[Tokenizer | None, str]:
    """Load the tokenizer if it exists here, and return it with a description."""
    if flags.tokenizer_type is None:
        return None, "none given"
    by_folder = flags.tokenizer_type == "PretrainedFromHF"
    path = flags.tokenizer_name_or_path if by_folder else flags.tokenizer_model
    if path is None or not Path(path).exists():
        return None, f"not found at {path}"
    tokenizer = load_tokenizer(
        flags.tokenizer_type,
        flags.tokenizer_name_or_path,
        flags.tokenizer_model,
        fast=not flags.tokenizer_not_use_fast,
    )
    return tokenizer, f"{path}, {tokenizer.vocab_size:,} tokens"


def _prefixes(data: DataArguments) -> tuple[str, ...]:
    paths = (data.data_path, data.train_data_path, data.valid_data_path, data.test_data_path)
    return tuple(dict.fromkeys(prefix for path in paths for prefix in parse_data_path(path)[1]))
