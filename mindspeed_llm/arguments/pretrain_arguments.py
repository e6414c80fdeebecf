"""Everything that pretrain_gpt.py is told, in one value."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from mindspeed_llm.arguments.data_arguments import DataArguments, TokenizerArguments
from mindspeed_llm.arguments.model_arguments import ModelArguments, Vocabulary
from mindspeed_llm.arguments.output_arguments import CheckpointArguments, LoggingArguments
from mindspeed_llm.arguments.parallel_arguments import DeviceArguments, ParallelArguments
from mindspeed_llm.arguments.training_arguments import TrainingArguments

GROUPS: tuple[type, ...] = (
    ModelArguments,
    ParallelArguments,
    TrainingArguments,
    DataArguments,
    TokenizerArguments,
    CheckpointArguments,
    LoggingArguments,
    DeviceArguments,
)


@dataclass
class PretrainArguments:
    """The groups of pretrain_gpt.py, in the order of GROUPS, and what the launcher says.

    Attributes:
        world_size: ranks of the job.
        given: flags that the command line named, such as '--seq-length'.
        shape_notice: what of the model's shape was not given and comes from the checkpoint of --load, in one line.
        batch_size_of_run: global batch size of the run that this command resumes, which stays where the command has no
            --global-batch-size; None in a new run.
    """

    model: ModelArguments
    parallel: ParallelArguments
    training: TrainingArguments
    data: DataArguments
    tokenizer: TokenizerArguments
    checkpoint: CheckpointArguments
    logging: LoggingArguments
    device: DeviceArguments
    world_size: int = 1
    given: frozenset[str] = frozenset()
    shape_notice: str | None = None
    batch_size_of_run: int | None = None

    @classmethod
    def from_groups(cls, groups: Iterable[Any], world_size: int, given: frozenset[str]) -> PretrainArguments:
        """From one instance for each class of GROUPS."""
        model, parallel, training, data, tokenizer, checkpoint, logging, device = groups
        return cls(model, parallel, training, data, tokenizer, checkpoint, logging, device, world_size, given)

    @property
    def groups(self) -> tuple[object, ...]:
        """One instance for each class of GROUPS."""
        return (
            self.model,
            self.parallel,
            self.training,
            self.data,
            self.tokenizer,
            self.checkpoint,
            self.logging,
            self.device,
        )

    @property
    def data_parallel_size(self) -> int:
        return self.parallel.data_parallel_size(self.world_size)

    @property
    def global_batch_size(self) -> int:
        """Packs of one update: given, or the resumed run's, or one micro-batch for each data-parallel rank."""
        if self.training.global_batch_size is None and self.batch_size_of_run is not None:
            return self.batch_size_of_run
        return self.training.global_batch(self.data_parallel_size)

    @property
    def micro_batches(self) -> int:
        """Micro-batches that each rank adds up for one update."""
        return self.global_batch_size // (self.training.micro_batch_size * self.data_parallel_size)

    @property
    def virtual_stages(self) -> int | None:
        """Virtual stages of each pipeline rank, None when the pipeline is not interleaved."""
        return self.parallel.virtual_stages(self.model.num_layers)

    @property
    def padding_multiple(self) -> int:
        """Multiple that --variable-seq-lengths pads to: --pad-to-multiple-of, and under sequence parallelism a multiple
        of the tensor-parallel size, which divides the sequence."""
        if not self.parallel.sequence_parallel:
            return self.data.pad_to_multiple_of
        return math.lcm(self.data.pad_to_multiple_of, self.parallel.tensor_model_parallel_size)

    @property
    def max_position_embeddings(self) -> int:
        return self.model.max_position_embeddings or self.data.seq_length

    def vocabulary(self, tokenizer_vocabulary: int | None = None) -> Vocabulary:
        """The vocabulary and its padding; see ModelArguments.vocabulary.

        Raises:
            ConfigError: the vocabulary is unknown, or larger than a flag allows.
        """
        return self.model.vocabulary(tokenizer_vocabulary, self.parallel.tensor_model_parallel_size)
