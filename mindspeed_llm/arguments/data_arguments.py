"""Arguments for the packed files of a run, the order of their packs, and the tokenizer."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mindspeed_llm.arguments.bounds import COUNT, INT32, LENGTH, between
from mindspeed_llm.arguments.resume_policy import FREE, NOTICE, REFUSE
from mindspeed_llm.errors import ConfigError

# Megatron's default for --data-path without --split.
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")
DEFAULT_SPLIT = "969,30,1"


@dataclass
class DataArguments:
    """Training data."""

    seq_length: int = field(metadata=REFUSE | between(1, LENGTH))
    """Sequence length in slots; for packed files the length that they were packed to."""
    data_path: list[str] = field(default_factory=list, metadata=NOTICE | {"metavar": "PREFIX"})
    """Prefix of packed files, path of document files without .bin and .idx, or raw data with --handler-name. Several of
    them may each be preceded by a weight. --split divides the data."""
    train_data_path: list[str] = field(default_factory=list, metadata=NOTICE | {"metavar": "PREFIX"})
    """Prefix of separate training data, instead of --data-path."""
    valid_data_path: list[str] = field(default_factory=list, metadata=NOTICE | {"metavar": "PREFIX"})
    """Prefix of separate validation data, instead of --data-path."""
    test_data_path: list[str] = field(default_factory=list, metadata=NOTICE | {"metavar": "PREFIX"})
    """Prefix of separate test data, instead of --data-path."""
    split: str | None = field(default=None, metadata=REFUSE | {"metavar": "TRAIN,VALID,TEST"})
    """Shares of --data-path for training, validation and test, such as 95,5,0. Default: Megatron's 969,30,1."""
    is_instruction_dataset: bool = field(default=False, metadata=REFUSE)
    """The data are PREFIX_packed_{input_ids,attention_mask,labels}_document files, as written by preprocess_data.py.
    Without it they are documents for pretraining, PREFIX_text_document.{bin,idx}, of which every token is trained."""
    eod_id: int | None = field(default=None, metadata=REFUSE | between(0, INT32))
    """End token of documents, if neither a manifest nor a tokenizer names it."""
    split_in_file_order: bool = field(default=False, metadata=REFUSE)
    """Cut documents at the shares of --split in file order, as Megatron does. Default: cut a seeded permutation of the
    documents, so that the validation documents come from all parts of the file."""
    prompt_type: str | None = field(default=None, metadata=REFUSE | {"metavar": "NAME"})
    """Chat template that the data were preprocessed with. It is compared with the manifest."""
    prompt_type_path: str | None = field(default=None, metadata=FREE | {"metavar": "FILE"})
    """JSON file with chat templates, used instead of the built-in ones."""
    neat_pack: bool = field(default=False, metadata=REFUSE)
    """The data are packed with --neat-pack: the attention mask numbers the samples, and each attends only to itself."""
    reset_position_ids: bool = field(default=False, metadata=REFUSE)
    """Restart positions at 0 in each sample. In files packed without --neat-pack, a sample ends at an end token."""
    reset_attention_mask: bool = field(default=False, metadata=REFUSE)
    """Let each sample attend only to itself. With --neat-pack, positions continue across samples."""
    padded_samples: bool = field(default=False, metadata=REFUSE)
    """Round each epoch up to a multiple of the run's first global batch size by repeating packs."""
    no_shuffle: bool = field(default=False, metadata=REFUSE)
    """Read each split in the order of its files, without shuffling."""
    full_shuffle_instruction_dataset: bool = field(default=False, metadata=FREE)
    """Accepted for compatibility: every epoch has a new order unless --no-shuffle is given."""
    length_grouped: bool = field(default=False, metadata=REFUSE)
    """Group unpacked samples of similar length into batches, in random order. Each epoch is rounded up to a multiple of
    the run's first global batch size. Needs --variable-seq-lengths."""
    variable_seq_lengths: bool = field(default=False, metadata=NOTICE | {"flags": ("--no-pad-to-seq-lengths",)})
    """Pad unpacked data to the longest sample of each micro-batch instead of --seq-length."""
    pad_to_multiple_of: int = field(default=1, metadata=NOTICE | between(1, LENGTH))
    """Multiple in tokens to which --variable-seq-lengths pads. With --sequence-parallel it is increased to a multiple
    of --tensor-model-parallel-size."""
    num_workers: int = field(default=2, metadata=FREE | between(0, COUNT))
    """Accepted for compatibility: no dataloader worker processes are started."""
    dataloader_type: Literal["single", "cyclic"] = field(default="single", metadata=FREE | {"not_built": ("external",)})
    """Accepted for compatibility: the seed, the epoch and --no-shuffle determine the order of the data."""
    no_shared_storage: bool = field(default=False, metadata=FREE)
    """With raw data: each machine preprocesses its own copy of them. Otherwise accepted for compatibility: no shared
    storage is needed, only access to the packed files on each machine."""

    verify_data_seconds: float = field(default=60, metadata=FREE | between(-1, 31_536_000))
    """Time limit in seconds at startup for comparing the packed files with the hashes in their manifests. Files that
    were checked before and are unchanged are not read again. 0: no check; -1: no limit, all files are read."""

    @property
    def per_split_paths(self) -> bool:
        """Whether each split has separate files."""
        return bool(self.train_data_path or self.valid_data_path or self.test_data_path)

    @property
    def shares(self) -> tuple[float, float, float]:
        """Shares of training, validation and test data of --data-path; they sum to 1.

        Raises:
            ConfigError: --split is invalid; see `parse_split`.
        """
        return parse_split(self.split if self.split is not None else DEFAULT_SPLIT)

    @property
    def has_validation(self) -> bool:
        """Whether there are validation data."""
        return bool(self.valid_data_path) if self.per_split_paths else bool(self.data_path) and self.shares[1] > 0


def parse_split(split: str) -> tuple[float, float, float]:
    """Parse the shares of training, validation and test data: '90,5,5' → (0.9, 0.05, 0.05).

    Missing shares are 0, as in Megatron.

    Args:
        split: value of --split.

    Returns:
        Shares that sum to 1.

    Raises:
        ConfigError: the value is not one to three numbers of at least 0 with a sum above 0.
    """
    try:
        numbers = [float(number) for number in split.split(",")]
    except ValueError:
        numbers = []
    if not 1 <= len(numbers) <= 3 or not all(math.isfinite(number) and number >= 0 for number in numbers):
        raise ConfigError(f"--split {split}: not three numbers of at least 0, such as --split 95,5,0")
    total = sum(numbers)
    if total <= 0:
        raise ConfigError(f"--split {split}: all shares are 0; give training a share, such as --split 95,5,0")
    train, valid, test = [number / total for number in numbers] + [0.0] * (3 - len(numbers))
    return train, valid, test


def parse_data_path(values: list[str]) -> tuple[list[float] | None, list[str]]:
    """Parse the values of --data-path or of a data path per split.

    As in Megatron, the values are pairs of weight and prefix if every first element of a pair is a number. Otherwise
    all of them are prefixes:

        ['0.3', 'a', '0.7', 'b'] → ([0.3, 0.7], ['a', 'b'])
        ['a', 'b']               → (None, ['a', 'b'])

    Args:
        values: values of the flag.

    Returns:
        Weights, or None without weights.
        Prefixes of packed files.
    """
    if len(values) % 2 == 1:
        return None, values
    try:
        return [float(weight) for weight in values[::2]], values[1::2]
    except ValueError:
        return None, values


def tokenizer_folder(path: str | None, slow: bool) -> tuple[str | None, bool]:
    """Replace the path of a tokenizer's file by its directory and the flag that selects this file.

    Args:
        path: value of --tokenizer-name-or-path.
        slow: value of --tokenizer-not-use-fast.

    Returns:
        directory and flag, unchanged if `path` is not the path of tokenizer.json or tokenizer.model.
    """
    file = Path(path or "")
    if file.name not in TOKENIZER_FILES or not file.is_file():
        return path, slow
    if file.with_name(TOKENIZER_FILES[0]).is_file():  # without it the flag does not select a file
        slow = file.name == TOKENIZER_FILES[1]
    return str(file.parent), slow


@dataclass
class TokenizerArguments:
    """Tokenizer."""

    tokenizer_type: Literal["PretrainedFromHF", "GPTSentencePieceTokenizer"] | None = field(
        default=None, metadata=NOTICE
    )
    """Type of the tokenizer: that of a Hugging Face folder, or a SentencePiece model. Default: the type that
    --tokenizer-name-or-path or --tokenizer-model names."""
    tokenizer_name_or_path: str | None = field(default=None, metadata=NOTICE | {"metavar": "DIR"})
    """Directory of a Hugging Face tokenizer, or its file tokenizer.json or tokenizer.model."""
    tokenizer_model: str | None = field(default=None, metadata=NOTICE | {"metavar": "FILE"})
    """Path of a SentencePiece model."""
    tokenizer_not_use_fast: bool = field(default=False, metadata=NOTICE)
    """Use the slow tokenizer of a Hugging Face folder: tokenizer.model even if tokenizer.json exists."""
    trust_remote_code: bool = field(default=False, metadata=FREE)
    """Accepted for compatibility: code in a tokenizer's folder is never executed. Only tokenizer.json or
    tokenizer.model is read; a tokenizer that needs custom code is refused."""

    def __post_init__(self) -> None:
        self.tokenizer_name_or_path, self.tokenizer_not_use_fast = tokenizer_folder(
            self.tokenizer_name_or_path, self.tokenizer_not_use_fast
        )

    def choose_type(self) -> None:
        """Set the type from the flag that names the tokenizer, if it is not given."""
        if self.tokenizer_type is None and self.tokenizer_name_or_path:
            self.tokenizer_type = "PretrainedFromHF"
        elif self.tokenizer_type is None and self.tokenizer_model:
            self.tokenizer_type = "GPTSentencePieceTokenizer"
