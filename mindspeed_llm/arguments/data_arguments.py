"""Which packed files are read and how, and the tokenizer that made them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from mindspeed_llm.arguments.bounds import COUNT, LENGTH, between
from mindspeed_llm.arguments.resume_policy import FREE, NOTICE, REFUSE
from mindspeed_llm.errors import ConfigError

# Megatron's, where --data-path is given without --split.
DEFAULT_SPLIT = "969,30,1"


@dataclass
class DataArguments:
    """Data."""

    seq_length: int = field(metadata=REFUSE | between(1, LENGTH))
    """Slots of a sequence; for packed files the length that they were packed to."""
    data_path: list[str] = field(default_factory=list, metadata=NOTICE | {"metavar": "PREFIX"})
    """Prefix of the packed files, or several, each with its weight before it or all without; divided by --split."""
    train_data_path: list[str] = field(default_factory=list, metadata=NOTICE | {"metavar": "PREFIX"})
    """Training data of its own, in place of --data-path."""
    valid_data_path: list[str] = field(default_factory=list, metadata=NOTICE | {"metavar": "PREFIX"})
    """Validation data of its own, in place of --data-path."""
    test_data_path: list[str] = field(default_factory=list, metadata=NOTICE | {"metavar": "PREFIX"})
    """Test data of its own, in place of --data-path."""
    split: str | None = field(default=None, metadata=REFUSE | {"metavar": "TRAIN,VALID,TEST"})
    """Shares of --data-path for training, validation and test, such as 95,5,0. Without it Megatron's 969,30,1."""
    is_instruction_dataset: bool = field(default=False, metadata=REFUSE)
    """The data are PREFIX_packed_{input_ids,attention_mask,labels}_document, as preprocess_data.py writes them; other
    data are not built yet."""
    prompt_type: str | None = field(default=None, metadata=REFUSE | {"metavar": "NAME"})
    """Template that the data were made with; checked against the manifest."""
    prompt_type_path: str | None = field(default=None, metadata=FREE | {"metavar": "FILE"})
    """File of further templates."""
    neat_pack: bool = field(default=False, metadata=REFUSE)
    """The attention mask of the files numbers the samples of each pack; each sample attends to itself alone."""
    reset_position_ids: bool = field(default=False, metadata=REFUSE)
    """Positions begin again at every sample. In files packed without --neat-pack an end token ends a sample."""
    reset_attention_mask: bool = field(default=False, metadata=REFUSE)
    """Each sample attends to itself alone; with --neat-pack it does not make positions begin again."""
    padded_samples: bool = field(default=False, metadata=REFUSE)
    """Round the packs of each epoch up to a multiple of the run's first global batch, by repeating some of them."""
    no_shuffle: bool = field(default=False, metadata=REFUSE)
    """Read each split in the order of its files."""
    full_shuffle_instruction_dataset: bool = field(default=False, metadata=FREE)
    """A new order in every epoch: always so here unless --no-shuffle."""
    length_grouped: bool = field(default=False, metadata=REFUSE)
    """Batches of unpacked samples of similar lengths, in random order; epochs are rounded up to whole batches of the
    run's first global batch size. Needs --variable-seq-lengths."""
    variable_seq_lengths: bool = field(default=False, metadata=NOTICE)
    """Pad unpacked data to the longest of each micro-batch in place of --seq-length."""
    pad_to_multiple_of: int = field(default=1, metadata=NOTICE | between(1, LENGTH))
    """Multiple that --variable-seq-lengths pads to. With --sequence-parallel it is raised to a multiple of
    --tensor-model-parallel-size."""
    num_workers: int = field(default=2, metadata=FREE | between(0, COUNT))
    """Worker processes of Megatron's data loader: none are needed here."""
    dataloader_type: Literal["single", "cyclic"] = field(default="single", metadata=FREE | {"not_built": ("external",)})
    """Megatron's kinds of order: the seed, the epoch and --no-shuffle decide it here."""
    no_shared_storage: bool = field(default=False, metadata=FREE)
    """No storage that all nodes share: none is needed here, beyond the packed files on each node."""

    verify_data_seconds: float = field(default=60, metadata=FREE | between(-1, 31_536_000))
    """At most so many seconds of the start compare the packed files with the hashes of their manifests. Files that were
    checked before and have not changed since are not read again. 0: none; -1: all files, however long it takes."""

    @property
    def per_split_paths(self) -> bool:
        """The splits come from files of their own."""
        return bool(self.train_data_path or self.valid_data_path or self.test_data_path)

    @property
    def shares(self) -> tuple[float, float, float]:
        """Shares of training, validation and test of --data-path; they sum to 1.

        Raises:
            ConfigError: --split is not three numbers.
        """
        return parse_split(self.split if self.split is not None else DEFAULT_SPLIT)

    @property
    def has_validation(self) -> bool:
        """There is data to evaluate on."""
        return bool(self.valid_data_path) if self.per_split_paths else bool(self.data_path) and self.shares[1] > 0


def parse_split(split: str) -> tuple[float, float, float]:
    """Shares of training, validation and test: '90,5,5' → (0.9, 0.05, 0.05). Missing ones are 0, as in Megatron.

    Raises:
        ConfigError: not one to three numbers from 0 up with a sum above 0.
    """
    try:
        numbers = [float(word) for word in split.split(",")]
    except ValueError:
        numbers = []
    if not 1 <= len(numbers) <= 3 or not all(math.isfinite(number) and number >= 0 for number in numbers):
        raise ConfigError(f"--split {split}: not three numbers from 0 up, such as --split 95,5,0")
    total = sum(numbers)
    if total <= 0:
        raise ConfigError(f"--split {split}: all shares are 0; give training one, such as --split 95,5,0")
    train, valid, test = [number / total for number in numbers] + [0.0] * (3 - len(numbers))
    return train, valid, test


def parse_data_path(words: list[str]) -> tuple[list[float] | None, list[str]]:
    """The words of a --*-data-path, by Megatron's rule: pairs of weight and prefix if they can be, else prefixes.

    ['0.3', 'a', '0.7', 'b'] → ([0.3, 0.7], ['a', 'b']);  ['a', 'b'] → (None, ['a', 'b']).
    """
    if len(words) % 2 == 1:
        return None, words
    try:
        return [float(word) for word in words[::2]], words[1::2]
    except ValueError:
        return None, words


@dataclass
class TokenizerArguments:
    """Tokenizer."""

    tokenizer_type: Literal["PretrainedFromHF", "GPTSentencePieceTokenizer"] | None = field(
        default=None, metadata=NOTICE
    )
    """Kind of tokenizer: a Hugging Face folder, or a SentencePiece model."""
    tokenizer_name_or_path: str | None = field(default=None, metadata=NOTICE | {"metavar": "DIR"})
    """Folder of a Hugging Face tokenizer."""
    tokenizer_model: str | None = field(default=None, metadata=NOTICE | {"metavar": "FILE"})
    """SentencePiece model."""
    tokenizer_not_use_fast: bool = field(default=False, metadata=NOTICE)
    """The slow tokenizer of a Hugging Face folder."""
    trust_remote_code: bool = field(default=False, metadata=FREE)
    """Accepted, but code of a tokenizer's folder is never run: tokenizer.json or tokenizer.model is read; a folder with
    neither, or whose tokenizer.model is read by code of its own, is refused with what to do."""
