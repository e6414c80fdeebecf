"""What there is of data and tokenizer where the plan is made. What is not there yet is said, not refused."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mindspeed_llm.arguments.data_arguments import DataArguments, TokenizerArguments, parse_data_path
from mindspeed_llm.arguments.training_arguments import TrainingArguments
from mindspeed_llm.data import SPLITS, Datasets, build_datasets
from mindspeed_llm.indexed_dataset import COLUMNS, Manifest, PackedFiles, column_prefix, manifest_path
from mindspeed_llm.tokenization import Tokenizer, load_tokenizer


@dataclass(frozen=True)
class DatasetSummary:
    """What a manifest says of one data set.

    Attributes:
        packs: documents; of files made without --pack, samples.
        fill: tokens ÷ slots once padded to the sequence length.
        trained: trained tokens ÷ tokens.
    """

    prefix: str
    packs: int
    samples: int
    fill: float
    trained: float

    @classmethod
    def of(cls, prefix: str, manifest: Manifest) -> DatasetSummary:
        """From the counts."""
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
    """The data of a run, as far as it is here.

    Attributes:
        prefixes: the ones the command names.
        kind: 'neat packs', 'plain packs' or 'unpacked samples'; None without data.
        packs: packs of each split that has any.
        figures: of each data set with a manifest.
        tokenizer: where the vocabulary comes from, in words.
        vocabulary: tokens of the tokenizer, or of the one that made the data; None where neither is here.
        tokenizer_sha256: of the tokenizer; None where it is not here.
        datasets: the splits, opened; None where the files are not here.
    """

    prefixes: tuple[str, ...]
    kind: str | None
    packs: dict[str, int]
    figures: tuple[DatasetSummary, ...]
    tokenizer: str
    vocabulary: int | None
    tokenizer_sha256: str | None = None
    datasets: Datasets | None = None

    @property
    def files(self) -> tuple[PackedFiles, ...]:
        """The data sets, opened; none where they are not here."""
        return tuple(self.datasets.files) if self.datasets is not None else ()

    @property
    def fill(self) -> float | None:
        """Over all data sets with a manifest; None without one."""
        packs = sum(one.packs for one in self.figures)
        return sum(one.fill * one.packs for one in self.figures) / packs if packs else None


def summarize_data(
    data: DataArguments, tokenizer_flags: TokenizerArguments, training: TrainingArguments
) -> DataSummary:
    """Open and check what is here, exactly as a new run does.

    Args:
        data: names the data sets.
        tokenizer_flags: name the tokenizer.
        training: seed, and whether the run evaluates.

    Raises:
        UserError: a tokenizer or data that is here and damaged, or does not fit the command.
    """
    tokenizer, words = _tokenizer(tokenizer_flags)
    prefixes = _prefixes(data)
    if not any(_is_here(prefix) for prefix in prefixes):
        vocabulary, sha256 = (tokenizer.vocab_size, tokenizer.sha256) if tokenizer else (None, None)
        return DataSummary(prefixes, None, {}, (), words, vocabulary, sha256)
    datasets = build_datasets(
        data,
        training.seed,
        evaluate=training.eval_iters > 0,
        tokenizer_sha256=tokenizer.sha256 if tokenizer else None,
        vocabulary=tokenizer.vocab_size if tokenizer else None,
    )
    manifests = [(str(files.prefix), files.manifest) for files in datasets.files if files.manifest is not None]
    if tokenizer is None and manifests:
        words += f"; {manifests[0][0]} was made with one of {manifests[0][1].tokenizer.vocab_size:,} tokens"
    return DataSummary(
        prefixes=prefixes,
        kind=datasets.kind.name,
        packs={name: len(split) for name in SPLITS if (split := datasets.split(name)) is not None},
        figures=tuple(DatasetSummary.of(prefix, manifest) for prefix, manifest in manifests),
        tokenizer=words,
        vocabulary=datasets.tokenizer_vocabulary(tokenizer),
        tokenizer_sha256=tokenizer.sha256 if tokenizer else None,
        datasets=datasets,
    )


def _tokenizer(named: TokenizerArguments) -> tuple[Tokenizer | None, str]:
    """The tokenizer if it is here, and a clause about it."""
    if named.tokenizer_type is None:
        return None, "none named"
    by_folder = named.tokenizer_type == "PretrainedFromHF"
    path = named.tokenizer_name_or_path if by_folder else named.tokenizer_model
    if path is None or not Path(path).exists():
        return None, f"not at {path}"
    tokenizer = load_tokenizer(
        named.tokenizer_type,
        named.tokenizer_name_or_path,
        named.tokenizer_model,
        fast=not named.tokenizer_not_use_fast,
    )
    return tokenizer, f"{path}, {tokenizer.vocab_size:,} tokens"


def _prefixes(data: DataArguments) -> tuple[str, ...]:
    words = (data.data_path, data.train_data_path, data.valid_data_path, data.test_data_path)
    return tuple(dict.fromkeys(prefix for path in words for prefix in parse_data_path(path)[1]))


def _is_here(prefix: str) -> bool:
    """Any of the files of a data set is."""
    columns = [column_prefix(prefix, column) for column in COLUMNS]
    files = [manifest_path(prefix)] + [Path(f"{column}.{suffix}") for column in columns for suffix in ("bin", "idx")]
    return any(file.exists() for file in files)
