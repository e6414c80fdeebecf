"""Compute the settings that follow from arguments, data, checkpoint and device, once per run.

The run, the dry run and the start table receive the same `DerivedSettings`, so they cannot disagree on a value.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from mindspeed_llm.arguments.model_arguments import Vocabulary
from mindspeed_llm.arguments.pretrain_arguments import PretrainArguments
from mindspeed_llm.arguments.training_arguments import TrainingArguments
from mindspeed_llm.attention import KernelChoice
from mindspeed_llm.checkpoints import StartPoint
from mindspeed_llm.data import Datasets, SampleOrder
from mindspeed_llm.errors import CheckpointError, DeviceError
from mindspeed_llm.model import FusedOps, LossChoice, select_attention, select_fused_ops, select_loss
from mindspeed_llm.training.learning_rate_schedule import RunLength
from mindspeed_llm.training.resume_progress import keep_batch_size_of_run, order_rounding_unit, start_point_and_length
from mindspeed_llm.training.schedule_of_checkpoint import keep_schedule_of_checkpoint

# Iterations that a dry run assumes if the length depends on missing data. The learning rate schedule needs a number,
# and with this one any warm-up ends before the decay does.
ITERATIONS_IF_UNKNOWN = 10**9
LINES = 10  # log lines per epoch and per run, at least


@dataclass(frozen=True)
class DerivedSettings:
    """Settings of one run, computed from its arguments, data, checkpoint and device.

    Attributes:
        length: iterations and samples of the complete run.
        global_batch_size: packs per update, over all ranks.
        vocabulary: vocabulary of the model, with its padding.
        padding_multiple: multiple that --variable-seq-lengths pads to, in slots.
        operators: fused operators of a layer.
        loss: how the loss is computed, in chunks or from dense logits.
        attention: attention kernel; None in a dry run if this machine does not have the device.
        attention_error: reason why `attention` is None.
        order: order of the training packs; None in a dry run without data.
        log_interval: iterations between log lines.
    """

    length: RunLength
    global_batch_size: int
    vocabulary: Vocabulary
    padding_multiple: int
    operators: FusedOps
    loss: LossChoice
    attention: KernelChoice | None
    attention_error: str | None = None
    order: SampleOrder | None = None
    log_interval: int = 1

    def on_meta_device(self, arguments: PretrainArguments) -> DerivedSettings:
        """Return the settings of the same run on the meta device of PyTorch, for the dry run."""
        return replace(
            self,
            operators=select_fused_ops(arguments.device, arguments.model, "meta"),
            attention=select_attention(arguments.model, arguments.training, "meta"),
        )


def derive_settings(
    arguments: PretrainArguments,
    device: str,
    vocabulary: Vocabulary,
    length: RunLength,
    order: SampleOrder | None = None,
    trained_share: float | None = None,
    *,
    device_is_here: bool = True,
) -> DerivedSettings:
    """Choose the fused operators and the attention kernel, and combine them with the other settings.

    Args:
        arguments: checked arguments.
        device: 'cpu', 'cuda', 'npu' or 'meta'.
        vocabulary: vocabulary of the model.
        length: length of the complete run.
        order: order of the training packs; None without data.
        trained_share: trained tokens ÷ tokens of the data; None if it is not known.
        device_is_here: False if this machine may lack the device (dry run). If the kernel can then not be chosen,
            `attention` is None instead of an error.

    Raises:
        DeviceError: no attention kernel of the device supports this model.
    """
    attention, attention_error = None, None
    # Some kernels can only be chosen on the device itself, so a plan on another machine continues without one.
    try:
        attention = select_attention(arguments.model, arguments.training, device)
    except DeviceError as error:
        if device_is_here:
            raise
        attention_error = str(error)
    return DerivedSettings(
        length=length,
        global_batch_size=arguments.global_batch_size,
        vocabulary=vocabulary,
        padding_multiple=arguments.padding_multiple,
        operators=select_fused_ops(arguments.device, arguments.model, device),
        loss=select_loss(
            arguments.training,
            arguments.data.seq_length * arguments.training.micro_batch_size,
            vocabulary.padded,
            arguments.parallel.tensor_model_parallel_size,
            trained_share,
        ),
        attention=attention,
        attention_error=attention_error,
        order=order,
        log_interval=arguments.logging.log_interval or default_log_interval(length, arguments.global_batch_size),
    )


def default_log_interval(length: RunLength, batch_size: int) -> int:
    """Return the iterations between log lines: 100, but at least ten lines per epoch and per run.

    Args:
        length: length of the complete run.
        batch_size: global batch size.
    """
    epoch = math.ceil(length.epoch_length / batch_size) or length.iterations
    return max(1, min(100, epoch // LINES, length.iterations // LINES))


def locate_start_point(
    arguments: PretrainArguments, datasets: Datasets, start: StartPoint
) -> tuple[PretrainArguments, StartPoint, SampleOrder, RunLength]:
    """Locate a start point in the order of the data.

    Args:
        arguments: checked arguments.
        datasets: opened and checked data sets.
        start: start point that the checkpoint gives.

    Returns:
        The arguments with the global batch size of the run, the start point with the exact number of consumed samples,
        the order of the training packs, and the length of the complete run.

    Raises:
        UserError: the run cannot be resumed from this start point.
    """
    # The batch size comes first: order, progress and length all depend on it.
    arguments = keep_batch_size_of_run(arguments, start)
    training, batch_size = arguments.training, arguments.global_batch_size
    order = datasets.train_order(arguments.data, training.seed, order_rounding_unit(arguments.data, batch_size, start))
    arguments, start = keep_schedule_of_checkpoint(arguments, start, order.epoch_length)
    start, length = start_point_and_length(training, batch_size, start, order.epoch_length)
    _check_can_resume(start, length)
    return arguments, start, order, length


def length_without_data(training: TrainingArguments, batch_size: int, start: StartPoint) -> RunLength | None:
    """Compute the length of a run without its data.

    Args:
        training: flags for the length of the run.
        batch_size: global batch size from this start on, in packs.
        start: start point that the checkpoint gives.

    Returns:
        The length, or None with --train-epochs, because the length then depends on the number of packs.

    Raises:
        ConfigError: the run has less than one global batch to train on.
    """
    return start_point_and_length(training, batch_size, start, 0)[1] if training.train_epochs is None else None


def _check_can_resume(start: StartPoint, length: RunLength) -> None:
    """Refuse to resume from a final checkpoint that was saved without optimizer state.

    Raises:
        CheckpointError: there are steps left, but the checkpoint has no optimizer state.
    """
    if start.kind == "continue" and not start.optimizer and start.progress.iteration < length.iterations:
        raise CheckpointError(
            f"{start.folder}: the run ended there without its optimizer state (--no-save-optim), so it cannot "
            f"continue to iteration {length.iterations}; start a new run from its weights with --load and --finetune"
        )
