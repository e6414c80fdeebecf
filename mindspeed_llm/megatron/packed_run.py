"""One run of Megatron on packs: the four arguments of `megatron.training.pretrain` that replace those of the script."""

from __future__ import annotations

import logging
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from mindspeed_llm.arguments.data_arguments import DataArguments
from mindspeed_llm.attention import KernelChoice, select_kernel
from mindspeed_llm.data import Datasets, MicroBatch, build_datasets
from mindspeed_llm.devices import select_device
from mindspeed_llm.errors import ConfigError
from mindspeed_llm.megatron.command_tokenizer import load_megatron_tokenizer
from mindspeed_llm.megatron.loaded_checkpoint import problem_of_loaded_checkpoint
from mindspeed_llm.megatron.megatron_flags import add_flags, data_arguments
from mindspeed_llm.megatron.megatron_versions import MegatronVersion
from mindspeed_llm.megatron.packed_attention_layers import attend_inside_samples
from mindspeed_llm.megatron.packed_forward_step import PackedForwardStep
from mindspeed_llm.megatron.packed_iterators import build_iterators
from mindspeed_llm.megatron.refused_flags import problems_of_arguments

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PreparedRun:
    """What follows from the command line and its data.

    Attributes:
        data: data arguments.
        datasets: opened and checked data sets.
        vocabulary: vocabulary size of the tokenizer; None if neither a manifest nor the command names one.
        attention: attention kernel.
    """

    data: DataArguments
    datasets: Datasets
    vocabulary: int | None
    attention: KernelChoice


class PackedRun:
    """The providers and the forward step of one call of `megatron.training.pretrain`.

    Args:
        version: version of Megatron.
        call: arguments of the call by name; four of them are replaced.
    """

    def __init__(self, version: MegatronVersion, call: dict[str, Any]) -> None:
        names = version.providers
        self.version = version
        self._model_of_script = call[names["model"]]
        self._flags_of_script = call.get(names["flags"])
        self._prepared: PreparedRun | None = None

        # Megatron looks for the parameter vp_stage, and for the attribute, on the provider.
        def datasets(_: object, vp_stage: int | None = None) -> tuple[Iterator[MicroBatch] | None, ...]:
            return self._iterators(vp_stage)

        datasets.is_distributed = True  # type: ignore[attr-defined]
        call[names["datasets"]] = datasets
        call[names["model"]] = self._model
        call[names["forward"]] = PackedForwardStep(version)
        call[names["flags"]] = self._flags

    def _flags(self, parser: ArgumentParser) -> ArgumentParser:
        """Add our flags to those of the script."""
        return add_flags(self._flags_of_script(parser) if self._flags_of_script is not None else parser)

    def _model(self, *positional: Any, **named: Any) -> torch.nn.Module:
        """Build a model chunk with the provider of the script, and put our attention into its layers."""
        from megatron.training import get_args

        # The first of our functions that Megatron calls after it has parsed the command line.
        if self._prepared is None:
            self._prepared = prepare_run(get_args(), self.version)
        chunk: torch.nn.Module = self._model_of_script(*positional, **named)
        attend_inside_samples(chunk, self._prepared.attention.kernel, self._prepared.vocabulary, self.version)
        return chunk

    def _iterators(self, virtual_stage: int | None) -> tuple[Iterator[MicroBatch] | None, ...]:
        from megatron.training import get_args

        run = self._prepared
        assert run is not None, "Megatron builds the model before the data"
        return build_iterators(get_args(), run.data, run.datasets, run.vocabulary, virtual_stage)


def prepare_run(args: Namespace, version: MegatronVersion) -> PreparedRun:
    """Check the command line, open its data and select the attention kernel.

    Args:
        args: Megatron's parsed arguments.
        version: version of Megatron.

    Raises:
        UserError: a flag that packs do not support, a checkpoint that Megatron cannot load, data that do not match the
            command, or no kernel for the device.
    """
    problems = problems_of_arguments(args)
    checkpoint = problem_of_loaded_checkpoint(args, version)
    if checkpoint is not None:
        problems.append(checkpoint)
    if problems:
        raise ConfigError(problems)
    # --dataloader-type of the command line: the iterators are ours in any case.
    args.dataloader_type = "external"
    data = data_arguments(args)
    tokenizer = load_megatron_tokenizer(args)
    datasets = build_datasets(
        data,
        args.seed,
        evaluate=args.eval_iters > 0,
        tokenizer_sha256=tokenizer.sha256 if tokenizer is not None else None,
        vocabulary=tokenizer.vocab_size if tokenizer is not None else None,
    )
    vocabulary = datasets.tokenizer_vocabulary(tokenizer)
    rows = args.padded_vocab_size
    if vocabulary is not None and vocabulary > rows:
        raise ConfigError(
            f"--tokenizer-type {args.tokenizer_type}: the model has {rows} rows for tokens, but the packs were made "
            f"with a tokenizer of {vocabulary} tokens; use that tokenizer (--tokenizer-model), or preprocess again"
        )
    head_size = args.kv_channels or args.hidden_size // args.num_attention_heads
    attention = select_kernel(select_device("auto").kind, args.params_dtype, head_size)
    logger.info(
        f"packed data: {datasets.kind.name} of {len(datasets.files)} data sets, {len(datasets.train)} for training; "
        f"attention: {attention.reason}\n"
        "notice: the output layer computes the logits of all slots here; the loss in chunks of pretrain_gpt.py would "
        "override a private method of the checkout's GPTModel"
    )
    return PreparedRun(data, datasets, vocabulary, attention)
