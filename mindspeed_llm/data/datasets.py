"""Build the datasets of training, validation and test from --data-path, or from one path per split."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mindspeed_llm.arguments.data_arguments import DataArguments
from mindspeed_llm.arguments.expected_data import expected_files
from mindspeed_llm.arguments.missing_paths import missing_packs
from mindspeed_llm.data.blending import Blend, parse_blend
from mindspeed_llm.data.block_dataset import BlockDataset, BlockKind
from mindspeed_llm.data.compatibility import detect_file_kind, find_problems, warn_about_unknown_end_tokens
from mindspeed_llm.data.document_datasets import (
    CommandTokenizer,
    build_block_splits,
    end_token,
    open_document_files,
)
from mindspeed_llm.data.packed_dataset import DatasetShare, PackedDataset
from mindspeed_llm.data.sample_order import SampleOrder
from mindspeed_llm.data.splits import SPLITS, split_packs
from mindspeed_llm.errors import ConfigError, DataError, UserError
from mindspeed_llm.indexed_dataset import DataFiles, PackedFiles
from mindspeed_llm.manifest import FileKind
from mindspeed_llm.tokenization import Tokenizer


@dataclass(frozen=True)
class Datasets:
    """The datasets of a run.

    Attributes:
        train: training packs, or blocks of documents.
        valid: validation packs or blocks, or None if there are none.
        test: test packs or blocks, or None if there are none.
        kind: kind of the files, the same for all of them.
        eod: end token from the manifest; None without a manifest.
        pad: padding token from the manifest; None without a manifest.
        files: the opened files, each prefix once.
    """

    train: PackedDataset | BlockDataset
    valid: PackedDataset | BlockDataset | None
    test: PackedDataset | BlockDataset | None
    kind: FileKind | BlockKind
    eod: int | None
    pad: int | None
    files: tuple[DataFiles, ...]

    def split(self, name: str) -> PackedDataset | BlockDataset | None:
        """Return the dataset of the split `name`, one of SPLITS."""
        return {"train": self.train, "valid": self.valid, "test": self.test}[name]

    def tokenizer_vocabulary(self, tokenizer: Tokenizer | None) -> int | None:
        """Return the vocabulary size of `tokenizer` or, without one, of the tokenizer that made the data.

        Returns:
            The size, or None without a tokenizer and without a manifest.
        """
        if tokenizer is not None:
            return tokenizer.vocab_size
        sizes = [files.manifest.tokenizer.vocab_size for files in self.files if files.manifest is not None]
        return max(sizes, default=None)

    @property
    def trained_share(self) -> float | None:
        """Trained tokens ÷ tokens of all files, from their manifests; None if a file has no manifest."""
        if isinstance(self.kind, BlockKind):
            return 1.0
        manifests = [files.manifest for files in self.files if files.manifest is not None]
        tokens = sum(manifest.tokens for manifest in manifests)
        if len(manifests) < len(self.files) or not tokens:
            return None
        return sum(manifest.trained_tokens for manifest in manifests) / tokens

    def train_order(self, data: DataArguments, seed: int, unit: int) -> SampleOrder:
        """Return the order of the training packs, which is the same on every rank and for every parallel layout.

        Args:
            data: data arguments of the command line.
            seed: seed of the run.
            unit: number of packs to which --padded-samples and --length-grouped round an epoch up: the first global
                batch size of the run.

        Raises:
            ConfigError: --length-grouped does not support the data.
        """
        if data.length_grouped:
            assert isinstance(self.train, PackedDataset), "a rule refuses --length-grouped for documents"
            return self.train.length_grouped_order(seed, unit)
        return self.train.order(seed, shuffle=not data.no_shuffle, round_up_to=unit if data.padded_samples else None)


def build_datasets(
    data: DataArguments,
    seed: int,
    evaluate: bool,
    tokenizer_sha256: str | None = None,
    vocabulary: int | None = None,
    eod: int | None = None,
    virtual_tokens: int = 0,
) -> Datasets:
    """Open the files, check them, and divide their packs or documents into splits.

    Args:
        data: data arguments of the command line.
        seed: seed of the run; the split depends on it.
        evaluate: whether validation packs will be read. If so, a validation share without packs is an error; with
            --split on the command line also a test share without packs.
        tokenizer_sha256: hash of the tokenizer of the command line, if any.
        vocabulary: vocabulary size of this tokenizer.
        eod: end token of this tokenizer, for documents whose manifest does not name it.
        virtual_tokens: reserved slots at the beginning of each sample, which the files must have.

    Returns:
        The datasets of the three splits.

    Raises:
        ConfigError: The files do not match the command line; all problems in one message.
        DataError: A file is missing or damaged, or a split has no packs or blocks.
    """
    blends = _blends(data)
    if not data.is_instruction_dataset:
        return _build_block_datasets(data, blends, seed, evaluate, CommandTokenizer(tokenizer_sha256, eod))
    opened = _open_files([prefix for blend in blends.values() for prefix in blend.prefixes])
    expected = dataclasses.replace(
        expected_files(data, virtual_tokens), tokenizer_sha256=tokenizer_sha256, vocabulary=vocabulary
    )
    files = tuple(opened.values())
    if problems := find_problems(files, expected):
        raise ConfigError(problems)
    warn_about_unknown_end_tokens(files, expected)
    kind = detect_file_kind(files[0], data.seq_length)
    needed = _needed_splits(data, evaluate)
    splits = {name: _build_split(name, data, blends, opened, seed, needed, kind) for name in SPLITS}
    train = splits["train"]
    assert train is not None
    # Any manifest will do: `find_problems` has compared the tokenizers of all of them.
    manifest = next((packed_files.manifest for packed_files in files if packed_files.manifest is not None), None)
    return Datasets(
        train=train,
        valid=splits["valid"],
        test=splits["test"],
        kind=kind,
        eod=manifest.tokenizer.eod_id if manifest is not None else None,
        pad=manifest.tokenizer.pad_id if manifest is not None else None,
        files=files,
    )


def _build_block_datasets(
    data: DataArguments, blends: dict[str, Blend], seed: int, evaluate: bool, tokenizer: CommandTokenizer
) -> Datasets:
    """Open document files and build their splits."""
    opened = open_document_files([prefix for blend in blends.values() for prefix in blend.prefixes])
    files = tuple(opened.values())
    eod = end_token(files, data, tokenizer)
    splits = build_block_splits(data, blends, opened, eod, seed, _needed_splits(data, evaluate))
    train = splits["train"]
    assert train is not None
    pads = [each.manifest.tokenizer.pad_id for each in files if each.manifest is not None]
    return Datasets(train, splits["valid"], splits["test"], BlockKind(), eod, pads[0] if pads else None, files)


def _blends(data: DataArguments) -> dict[str, Blend]:
    """Return the datasets of each split, or, with --data-path, those of all splits under the key 'all'."""
    if not data.per_split_paths:
        return {"all": parse_blend(data.data_path, "--data-path")}
    paths = {"train": data.train_data_path, "valid": data.valid_data_path, "test": data.test_data_path}
    return {
        name: parse_blend(words, f"--{name}-data-path") for name, words in paths.items() if words or name == "train"
    }


def _open_files(prefixes: Sequence[str]) -> dict[str, PackedFiles]:
    """Open each prefix once, and raise the problems of all of them in one DataError."""
    opened: dict[str, PackedFiles] = {}
    problems = []
    for prefix in dict.fromkeys(prefixes):
        try:
            opened[prefix] = PackedFiles.open(Path(prefix))
        except UserError as error:  # noqa: PERF203 - report all bad files together
            problems.append(missing_packs(prefix) or str(error))
    if problems:
        raise DataError("\n".join(problems))
    return opened


def _needed_splits(data: DataArguments, evaluate: bool) -> set[str]:
    """Return the splits that must have packs if their share is above 0."""
    if not evaluate:
        return {"train"}
    # The default of --split has a small test share, which a small dataset cannot fill; that must not stop a run.
    return set(SPLITS) if data.split is not None else {"train", "valid"}


def _build_split(
    name: str,
    data: DataArguments,
    blends: dict[str, Blend],
    opened: dict[str, PackedFiles],
    seed: int,
    needed: Collection[str],
    kind: FileKind,
) -> PackedDataset | None:
    """Return the dataset of the split `name`, or None if it has no packs."""
    blend = blends.get("all") or blends.get(name)
    if blend is None:
        return None
    components = []
    for prefix in blend.prefixes:
        files = opened[prefix]
        count = len(files.attention_mask)
        if "all" in blends:
            packs = split_packs(count, data.shares, seed, needed, prefix)[SPLITS.index(name)]
        else:
            packs = np.arange(count, dtype=np.int64)
        components.append(DatasetShare(files, packs))
    filled = [component for component in components if len(component.packs)]
    empty = [prefix for prefix, share in zip(blend.prefixes, components, strict=True) if not len(share.packs)]
    if empty and (not filled or blend.weights is not None):
        # A dataset without packs cannot contribute its weight, so the blend would differ from the command line.
        if name == "train" or (name in needed and "all" not in blends):
            where = "give it a share in --split" if "all" in blends else "preprocess again, or leave it out"
            raise DataError(f"no packs for {name} in {', '.join(empty)}: {where}")
        return None
    return PackedDataset(filled, blend.weights, kind.packed, kind.neat)
