"""Values that follow from the arguments, the data, the checkpoint and the device: computed once for a run.

The run, the dry run and the start table receive the same `DerivedSettings`; none of them computes a value again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from mindspeed_llm.arguments.model_arguments import Vocabulary
from mindspeed_llm.arguments.pretrain_arguments import PretrainArguments
from mindspeed_llm.arguments.training_arguments import TrainingArguments
from mindspeed_llm.attention import KernelChoice
from mindspeed_llm.checkpoints import StartPoint
from mindspeed_llm.data import Datasets, SampleOrder
from mindspeed_llm.errors import CheckpointError, DeviceError
from mindspeed_llm.model import FusedOps, select_attention, select_fused_ops
from mindspeed_llm.training.learning_rate_schedule import RunLength
from mindspeed_llm.training.resume_progress import keep_batch_size_of_run, order_rounding_unit, start_point_and_length

# Length of a run that depends on data that is not here, for its learning rate schedule in a dry run.
ITERATIONS_IF_UNKNOWN = 10**9


@dataclass(frozen=True)
class DerivedSettings:
    """Values of one run, computed from its arguments, data, checkpoint and device.

    Attributes:
        length: iterations and samples of the whole run.
        global_batch_size: packs of one update.
        vocabulary: of the model, with its padding.
        padding_multiple: multiple that --variable-seq-lengths pads to.
        operators: fused operators of a layer.
        attention: attention kernel; None in a dry run for a device that is not here.
        attention_error: why it is None.
        order: order of the training packs; None where the data is not here.
    """

    length: RunLength
    global_batch_size: int
    vocabulary: Vocabulary
    padding_multiple: int
    operators: FusedOps
    attention: KernelChoice | None
    attention_error: str | None = None
    order: SampleOrder | None = None

    def on_meta_device(self, arguments: PretrainArguments) -> DerivedSettings:
        """The same run on torch's meta device, as the dry run builds it."""
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
    *,
    device_is_here: bool = True,
) -> DerivedSettings:
    """Choose operators and kernel, and put them beside what is known.

    Args:
        arguments: checked arguments.
        device: 'cpu', 'cuda', 'npu' or 'meta'.
        vocabulary: of the model.
        length: of the whole run.
        order: of the training packs, if the data is here.
        device_is_here: False lets the attention kernel be None where only the device itself can tell.

    Raises:
        DeviceError: no attention kernel of the device supports this model.
    """
    attention, attention_error = None, None
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
        attention=attention,
        attention_error=attention_error,
        order=order,
    )


def locate_start_point(
    arguments: PretrainArguments, datasets: Datasets, start: StartPoint
) -> tuple[PretrainArguments, StartPoint, SampleOrder, RunLength]:
    """Find the position of a start in the order of the data.

    Args:
        arguments: checked arguments.
        datasets: opened and checked.
        start: from the checkpoint.

    Returns:
        the arguments with the batch size of the run, the start with the samples that were really consumed, the order of
        the training packs, and the length of the whole run.

    Raises:
        UserError: the run cannot be resumed from there.
    """
    arguments = keep_batch_size_of_run(arguments, start)
    training, batch_size = arguments.training, arguments.global_batch_size
    order = datasets.train_order(arguments.data, training.seed, order_rounding_unit(arguments.data, batch_size, start))
    start, length = start_point_and_length(training, batch_size, start, order.epoch_length)
    _check_can_resume(start, length)
    return arguments, start, order, length


def length_without_data(training: TrainingArguments, batch_size: int, start: StartPoint) -> RunLength | None:
    """Length of a run whose data is not here; None where --train-epochs counts that data.

    Args:
        training: for the length of the run.
        batch_size: global batch size from here on.
        start: from the checkpoint.
    """
    return start_point_and_length(training, batch_size, start, 0)[1] if training.train_epochs is None else None


def _check_can_resume(start: StartPoint, length: RunLength) -> None:
    """Refuse a last checkpoint that was saved without what further steps need.

    Raises:
        CheckpointError: there are steps left, but no optimizer state.
    """
    if start.kind == "continue" and not start.optimizer and start.progress.iteration < length.iterations:
        raise CheckpointError(
            f"{start.folder}: the run ended there without its optimizer state (--no-save-optim), so it cannot go on "
            f"to iteration {length.iterations}; start a new run from its weights with --load and --finetune"
        )
