"""--data-path, or one path per split → the packs to train, validate and test on."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mindspeed_llm.arguments.data_arguments import DataArguments
from mindspeed_llm.data.blending import Blend, parse_blend
from mindspeed_llm.data.compatibility import (
    ExpectedFiles,
    FileKind,
    compatibility_problems,
    dataset_problems,
    detect_file_kind,
    warn_about_unknown_end_tokens,
)
from mindspeed_llm.data.packed_dataset import DatasetShare, PackedDataset
from mindspeed_llm.data.sample_order import SampleOrder
from mindspeed_llm.data.splits import SPLITS, split_packs
from mindspeed_llm.errors import ConfigError, DataError, UserError
from mindspeed_llm.indexed_dataset import PackedFiles
from mindspeed_llm.tokenization import Tokenizer


@dataclass(frozen=True)
class Datasets:
    """The splits of a run; valid and test are None where they have no packs.

    Attributes:
        kind: packed or not, neat or not; the same for every file.
        eod, pad: the end token and the padding token as the manifest names them; None without a manifest.
        files: every data set that was opened, each once.
    """

    train: PackedDataset
    valid: PackedDataset | None
    test: PackedDataset | None
    kind: FileKind
    eod: int | None
    pad: int | None
    files: tuple[PackedFiles, ...]

    def split(self, name: str) -> PackedDataset | None:
        """One of SPLITS by name."""
        return {"train": self.train, "valid": self.valid, "test": self.test}[name]

    def tokenizer_vocabulary(self, tokenizer: Tokenizer | None) -> int | None:
        """Tokens that the tokenizer can give: the command's own, else the one that made the data; None if unknown."""
        if tokenizer is not None:
            return tokenizer.vocab_size
        sizes = [files.manifest.tokenizer.vocab_size for files in self.files if files.manifest is not None]
        return max(sizes, default=None)

    def train_order(self, data: DataArguments, seed: int, unit: int) -> SampleOrder:
        """The order of the training packs, the same on every rank and layout.

        Args:
            data: the data group of the command line.
            seed: of the run.
            unit: packs that --padded-samples and --length-grouped round to: the first global batch size of the run.

        Raises:
            ConfigError: --length-grouped on data that cannot be grouped.
        """
        if data.length_grouped:
            return self.train.length_grouped_order(seed, unit)
        return self.train.order(seed, shuffle=not data.no_shuffle, round_up_to=unit if data.padded_samples else None)


def build_datasets(
    data: DataArguments,
    seed: int,
    evaluate: bool,
    tokenizer_sha256: str | None = None,
    vocabulary: int | None = None,
) -> Datasets:
    """Open and check the files, and divide their packs.

    Args:
        data: the data group of the command line.
        seed: of the run; the split depends on it.
        evaluate: validation packs will be read, so a validation share that comes out empty is an error; with a
            --split that the user gave, an empty test share too.
        tokenizer_sha256, vocabulary: of the tokenizer that the command names, if any.

    Raises:
        ConfigError: every way in which the files do not fit the command, naming the flag.
        DataError: a file that is missing or damaged, or a split without packs.
    """
    blends = _blends(data)
    opened = _opened([prefix for blend in blends.values() for prefix in blend.prefixes])
    expected = ExpectedFiles(
        seq_length=data.seq_length,
        neat_pack=data.neat_pack,
        split_at_end_tokens=data.reset_position_ids or data.reset_attention_mask,
        template=data.prompt_type,
        tokenizer_sha256=tokenizer_sha256,
        vocabulary=vocabulary,
    )
    files = tuple(opened.values())
    problems = [problem for one in files for problem in dataset_problems(one, expected)]
    problems += compatibility_problems(files, expected)
    if problems:
        raise ConfigError(problems)
    warn_about_unknown_end_tokens(files, expected)
    kind = detect_file_kind(files[0], data.seq_length)
    needed = _needed(data, evaluate)
    splits = {name: _one_split(name, data, blends, opened, seed, needed, kind) for name in SPLITS}
    train = splits["train"]
    assert train is not None
    manifest = next((one.manifest for one in files if one.manifest is not None), None)
    return Datasets(
        train=train,
        valid=splits["valid"],
        test=splits["test"],
        kind=kind,
        eod=manifest.tokenizer.eod_id if manifest is not None else None,
        pad=manifest.tokenizer.pad_id if manifest is not None else None,
        files=files,
    )


def _blends(data: DataArguments) -> dict[str, Blend]:
    """The data sets of each split, or those of all splits under 'all'."""
    if not data.per_split_paths:
        return {"all": parse_blend(data.data_path, "--data-path")}
    paths = {"train": data.train_data_path, "valid": data.valid_data_path, "test": data.test_data_path}
    return {
        name: parse_blend(words, f"--{name}-data-path") for name, words in paths.items() if words or name == "train"
    }


def _opened(prefixes: Sequence[str]) -> dict[str, PackedFiles]:
    """Each data set opened once; what is wrong with any of them is raised together."""
    opened: dict[str, PackedFiles] = {}
    problems = []
    for prefix in dict.fromkeys(prefixes):
        try:
            opened[prefix] = PackedFiles.open(Path(prefix))
        except UserError as error:  # noqa: PERF203 - all bad files are named together
            problems.append(str(error))
    if problems:
        raise DataError("\n".join(problems))
    return opened


def _needed(data: DataArguments, evaluate: bool) -> set[str]:
    """The splits that may not come out empty if they have a share."""
    if not evaluate:
        return {"train"}
    return set(SPLITS) if data.split is not None else {"train", "valid"}


def _one_split(
    name: str,
    data: DataArguments,
    blends: dict[str, Blend],
    opened: dict[str, PackedFiles],
    seed: int,
    needed: Collection[str],
    kind: FileKind,
) -> PackedDataset | None:
    """The packs of one split, or None if it has none."""
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
    empty = [prefix for prefix, one in zip(blend.prefixes, components, strict=True) if not len(one.packs)]
    if empty and (not filled or blend.weights is not None):
        # A data set with a weight but no packs cannot have its share.
        if name == "train" or (name in needed and "all" not in blends):
            where = "give it a share in --split" if "all" in blends else "preprocess again, or leave it out"
            raise DataError(f"no packs for {name} in {', '.join(empty)}: {where}")
        return None
    return PackedDataset(filled, blend.weights, kind.packed, kind.neat)
