"""All arguments of pretrain_gpt.py in one dataclass."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from mindspeed_llm.adapters import AdapterSettings
from mindspeed_llm.arguments.compatibility_arguments import CompatibilityArguments
from mindspeed_llm.arguments.data_arguments import DataArguments, TokenizerArguments
from mindspeed_llm.arguments.flag import declared_flags
from mindspeed_llm.arguments.generation_arguments import GenerationArguments
from mindspeed_llm.arguments.lora_arguments import LoraArguments
from mindspeed_llm.arguments.model_arguments import ModelArguments, Vocabulary
from mindspeed_llm.arguments.output_arguments import CheckpointArguments, LoggingArguments
from mindspeed_llm.arguments.parallel_arguments import DeviceArguments, ParallelArguments
from mindspeed_llm.arguments.raw_data_arguments import RawDataArguments
from mindspeed_llm.arguments.training_arguments import TrainingArguments
from mindspeed_llm.arguments.tuning_arguments import TuningArguments

# `PretrainArguments.from_groups` and `PretrainArguments.groups` depend on this order; it is that of --help as well.
GROUPS: tuple[type, ...] = (
    ModelArguments,
    ParallelArguments,
    TrainingArguments,
    TuningArguments,
    LoraArguments,
    DataArguments,
    TokenizerArguments,
    CheckpointArguments,
    LoggingArguments,
    GenerationArguments,
    DeviceArguments,
    CompatibilityArguments,
)


@dataclass
class PretrainArguments:
    """The argument groups of pretrain_gpt.py, in the order of GROUPS, and the number of ranks.

    Attributes:
        world_size: number of ranks of the job.
        given: flags that the command line or its --config file contains, such as '--seq-length'.
        shape_notice: one line with the flags of the model architecture that are taken from the checkpoint of --load;
            None if there are none.
        batch_size_of_run: global batch size of the run that this command resumes, used if the command has no
            --global-batch-size; None for a new run.
        raw_data: flags of raw data. They are not among the groups that are compared on resume.
        wrong_files: messages about files and directories that the command names and that do not exist, and about packed
            files that were made for other flags.
        sources: flag that is not on the command line → the file that its value comes from.
    """

    model: ModelArguments
    parallel: ParallelArguments
    training: TrainingArguments
    tuning: TuningArguments
    lora: LoraArguments
    data: DataArguments
    tokenizer: TokenizerArguments
    checkpoint: CheckpointArguments
    logging: LoggingArguments
    generation: GenerationArguments
    device: DeviceArguments
    compatibility: CompatibilityArguments
    world_size: int = 1
    given: frozenset[str] = frozenset()
    shape_notice: str | None = None
    batch_size_of_run: int | None = None
    raw_data: RawDataArguments = field(default_factory=RawDataArguments)
    sources: dict[str, str] = field(default_factory=dict)
    wrong_files: list[str] = field(default_factory=list)

    @classmethod
    def from_groups(cls, groups: Iterable[Any], world_size: int, given: frozenset[str]) -> PretrainArguments:
        """Create the arguments from their groups.

        Args:
            groups: one instance per class of GROUPS, in the same order.
            world_size: number of ranks of the job.
            given: flags that the command line contains.
        """
        names = [field.name for field in dataclasses.fields(cls)][: len(GROUPS)]
        values: dict[str, Any] = dict(zip(names, groups, strict=True))
        return cls(**values, world_size=world_size, given=given)

    @property
    def groups(self) -> tuple[object, ...]:
        """One instance per class of GROUPS, in the same order."""
        return (
            self.model,
            self.parallel,
            self.training,
            self.tuning,
            self.lora,
            self.data,
            self.tokenizer,
            self.checkpoint,
            self.logging,
            self.generation,
            self.device,
            self.compatibility,
        )

    def describe_sources(self) -> list[str]:
        """Return one line for each place that values come from: the command line, then files with their flags."""
        lines = []
        if on_command_line := sorted(self.given - self.sources.keys()):
            lines.append(f"command line: {' '.join(on_command_line)}")
        groups = [
            (group, flag) for kind, group in zip(GROUPS, self.groups, strict=True) for flag in declared_flags(kind)
        ]
        values = {flag.name: getattr(group, flag.field.name) for group, flag in groups}
        for source in dict.fromkeys(self.sources.values()):
            flags = [name for name, file in self.sources.items() if file == source]
            lines.append(f"{source}: {' '.join(_as_given(name, values.get(name)) for name in flags)}")
        return [*lines, "all other flags: their defaults"]

    @property
    def training_stage(self) -> str:
        """Training method: --stage, or its default, which depends on the data."""
        return self.training.stage or ("sft" if self.data.is_instruction_dataset else "pretrain")

    @property
    def adapter(self) -> AdapterSettings | None:
        """Settings of the adapter; None if the run trains all parameters.

        Raises:
            ConfigError: a target of LoRA is unknown or given twice.
        """
        return self.tuning.settings or self.lora.settings

    @property
    def virtual_tokens(self) -> int:
        """Number of virtual tokens before each sample.

        Raises:
            ConfigError: see `adapter`.
        """
        return self.adapter.virtual_tokens if self.adapter is not None else 0

    @property
    def adapter_flag(self) -> str:
        """Flag that switches the adapter on, for messages."""
        return "--lora-target-modules" if self.tuning.settings is None else f"--tuning {self.tuning.tuning}"

    @property
    def data_parallel_size(self) -> int:
        """Number of data-parallel ranks, each with a copy of the model."""
        return self.parallel.data_parallel_size(self.world_size)

    @property
    def global_batch_size(self) -> int:
        """Number of packs per update over all ranks.

        It is --global-batch-size, or the value of the resumed run, or one micro-batch per data-parallel rank.
        """
        if self.training.global_batch_size is None and self.batch_size_of_run is not None:
            return self.batch_size_of_run
        return self.training.default_global_batch_size(self.data_parallel_size)

    @property
    def micro_batches(self) -> int:
        """Number of micro-batches per update on each rank, whose gradients are accumulated."""
        return self.global_batch_size // (self.training.micro_batch_size * self.data_parallel_size)

    @property
    def virtual_stages(self) -> int | None:
        """Number of virtual stages per pipeline rank; None if the pipeline is not interleaved."""
        return self.parallel.virtual_stages(self.model.num_layers)

    @property
    def padding_multiple(self) -> int:
        """Multiple in tokens to which --variable-seq-lengths pads.

        It is --pad-to-multiple-of. With sequence parallelism it is increased to a multiple of the tensor-parallel size,
        because the tensor-parallel ranks divide the sequence.
        """
        if not self.parallel.sequence_parallel:
            return self.data.pad_to_multiple_of
        return math.lcm(self.data.pad_to_multiple_of, self.parallel.tensor_model_parallel_size)

    @property
    def max_position_embeddings(self) -> int:
        """Maximum sequence length of the model in tokens; by default --seq-length."""
        return self.model.max_position_embeddings or self.data.seq_length

    def vocabulary(self, tokenizer_vocabulary: int | None = None) -> Vocabulary:
        """Return the vocabulary size with and without padding; see `ModelArguments.vocabulary`.

        Args:
            tokenizer_vocabulary: number of tokens of the tokenizer; None without a tokenizer.

        Raises:
            ConfigError: the vocabulary size is unknown, or larger than a flag allows.
        """
        return self.model.vocabulary(tokenizer_vocabulary, self.parallel.tensor_model_parallel_size)


def _as_given(flag: str, value: Any) -> str:
    """Return a flag with its value, as on the command line."""
    if value is None or isinstance(value, bool):
        return flag if value is not False else f"{flag} false"
    return f"{flag} {' '.join(map(str, value)) if isinstance(value, list) else value}"
