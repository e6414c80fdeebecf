"""Build the plan of a job: model, memory per rank, data and start point."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mindspeed_llm.arguments.data_arguments import DataArguments
from mindspeed_llm.arguments.notices import collect_notices
from mindspeed_llm.arguments.parallel_arguments import DeviceArguments
from mindspeed_llm.arguments.pretrain_arguments import PretrainArguments
from mindspeed_llm.devices import ACCELERATORS, Accelerator, apply_patches, dry_run_device_kind
from mindspeed_llm.dry_run.activation_memory import SavedByOps
from mindspeed_llm.dry_run.data_summary import DataSummary, summarize_data
from mindspeed_llm.dry_run.memory_fit import USABLE_SHARE, Proposals, propose_changes

if TYPE_CHECKING:
    from mindspeed_llm.checkpoints import StartPoint
    from mindspeed_llm.data import SampleOrder
    from mindspeed_llm.dry_run.rank_memory import RankMemory
    from mindspeed_llm.dry_run.step_work import StepWork
    from mindspeed_llm.training.derived_settings import DerivedSettings
    from mindspeed_llm.training.learning_rate_schedule import RunLength


@dataclass(frozen=True)
class JobPlan:
    """Plan of a job.

    Attributes:
        arguments: checked arguments.
        device: 'cpu', 'cuda' or 'npu': the device that the memory is estimated for.
        derived: length, vocabulary, operators and attention kernel, as the run computes them.
        length_is_known: False if the length depends on data that does not exist here.
        attention: attention kernel and the reason for it.
        memory: operators of the device that save less for the backward pass.
        parameters: parameters of one copy of the model, each counted once.
        trained: number of those that are trained; fewer with an adapter.
        ranks: memory of each rank; of a large job, of each kind of rank.
        data: data and tokenizer that exist here.
        start: start point of the run and the reason for it.
        notices: flags without effect, and flags that change a resumed run.
        seconds: duration of building the ranks and tracing them.
        work: tokens and operations of an average pack.
        proposals: changes that make the job fit; None without --device-type, or if it fits.
    """

    arguments: PretrainArguments
    device: str
    derived: DerivedSettings
    length_is_known: bool
    attention: str
    memory: SavedByOps
    parameters: int
    trained: int
    ranks: list[RankMemory]
    data: DataSummary
    start: str
    notices: list[str]
    seconds: float
    work: StepWork
    proposals: Proposals | None = None

    @property
    def accelerator(self) -> Accelerator | None:
        """Accelerator of --device-type; None without the flag."""
        return _accelerator(self.arguments.device)

    @property
    def largest(self) -> RankMemory:
        """The rank with the maximum memory."""
        return max(self.ranks, key=lambda rank: rank.total)


def build_job_plan(arguments: PretrainArguments) -> JobPlan:
    """Build every rank of a job on the meta device, and check the data and the checkpoint that exist.

    The process cannot train afterwards: the patches of megatron-core for the meta device stay in place.

    Args:
        arguments: checked arguments.

    Raises:
        UserError: invalid input that a run would refuse as well. Missing data, tokenizer or checkpoint are no errors.
    """
    accelerator = _accelerator(arguments.device)
    kind = dry_run_device_kind(arguments.device.device) if accelerator is None else accelerator.device
    apply_patches("meta")
    # These modules import megatron-core, which must be patched before.
    from mindspeed_llm.dry_run.step_work import measure_step_work
    from mindspeed_llm.training.data_notices import data_notices
    from mindspeed_llm.training.derived_settings import (
        ITERATIONS_IF_UNKNOWN,
        length_without_data,
        locate_start_point,
    )
    from mindspeed_llm.training.learning_rate_schedule import RunLength
    from mindspeed_llm.training.resume_progress import batch_notice, keep_batch_size_of_run

    virtual_tokens = arguments.adapter.virtual_tokens if arguments.adapter is not None else 0
    data = summarize_data(arguments.data, arguments.tokenizer, arguments.training, virtual_tokens)
    start = _start(arguments, kind, data)
    order: SampleOrder | None = None
    length: RunLength | None
    if data.datasets is not None:
        arguments, start, order, length = locate_start_point(arguments, data.datasets, start)
    else:
        # Without data there is no order; batch size and length can still be computed from flags and checkpoint.
        arguments = keep_batch_size_of_run(arguments, start)
        length = length_without_data(arguments.training, arguments.global_batch_size, start)
    default = arguments.training.default_global_batch_size(arguments.data_parallel_size)
    notice = batch_notice(start, length.batch_sizes, default) if length is not None else None
    inputs = _Inputs(
        kind,
        data.vocabulary,
        length or RunLength(ITERATIONS_IF_UNKNOWN, 0),
        order,
        _trained_share(arguments.device, arguments.data, data),
    )
    start_time = time.perf_counter()
    derived, memory, ranks = _estimate(arguments, inputs)
    seconds = time.perf_counter() - start_time
    chunks = [layers for stage in {rank.pipeline: rank.layers for rank in ranks}.values() for layers in stage]
    return JobPlan(
        arguments=arguments,
        device=kind,
        derived=derived,
        length_is_known=length is not None,
        attention=_attention(derived),
        memory=memory,
        # One value per pipeline stage: all ranks of a stage report the same number.
        parameters=sum({rank.pipeline: rank.stage_parameters for rank in ranks}.values()),
        trained=sum({rank.pipeline: rank.stage_trained for rank in ranks}.values()),
        ranks=ranks,
        data=data,
        start=start.reason if notice is None else f"{start.reason}; {notice}",
        notices=[
            *collect_notices(arguments, kind),
            *start.notices,
            *data_notices(arguments, data.datasets, length),
        ],
        seconds=seconds,
        work=measure_step_work(arguments, derived, chunks, data.datasets, data.loaded_tokenizer, inputs.share_or_all),
        proposals=_proposals(arguments, inputs, ranks, is_resumed=start.kind == "continue"),
    )


@dataclass(frozen=True)
class _Inputs:
    """What an estimate needs besides the arguments.

    Attributes:
        device: 'cpu', 'cuda' or 'npu'.
        vocabulary: number of tokens of the tokenizer; None without one.
        length: length of the run.
        order: order of the training packs; None without data.
        trained_share: trained tokens ÷ tokens; None if it is not known.
    """

    device: str
    vocabulary: int | None
    length: RunLength
    order: SampleOrder | None
    trained_share: float | None

    @property
    def share_or_all(self) -> float:
        """Trained tokens ÷ tokens, or 1 if it is not known."""
        return 1.0 if self.trained_share is None else self.trained_share


def _estimate(
    arguments: PretrainArguments, inputs: _Inputs, *, every_rank: bool = True
) -> tuple[DerivedSettings, SavedByOps, list[RankMemory]]:
    """Return the settings of a job, the operators of its device, and the memory of its ranks."""
    from mindspeed_llm.dry_run.rank_memory import estimate_rank_memory
    from mindspeed_llm.training.derived_settings import derive_settings

    derived = derive_settings(
        arguments,
        inputs.device,
        arguments.vocabulary(inputs.vocabulary),
        inputs.length,
        inputs.order,
        inputs.trained_share,
        device_is_here=False,
    )
    kernel = derived.attention.kernel.name if derived.attention is not None else None
    memory = SavedByOps.of(derived.operators, kernel)
    on_meta = derived.on_meta_device(arguments)
    return (
        derived,
        memory,
        estimate_rank_memory(arguments, on_meta, memory, inputs.share_or_all, every_rank=every_rank),
    )


def _accelerator(device: DeviceArguments) -> Accelerator | None:
    name = device.device_type
    return None if name is None else ACCELERATORS[name]


def _trained_share(device: DeviceArguments, data: DataArguments, summary: DataSummary) -> float | None:
    """Return trained tokens ÷ tokens from the flag or the data; None if it is not known."""
    share = device.dry_run_trained_share
    if share is None and summary.datasets is not None:
        share = summary.datasets.trained_share
    if share is None and not data.is_instruction_dataset:
        return 1.0  # every token of documents is trained
    return share


def _proposals(
    arguments: PretrainArguments, inputs: _Inputs, ranks: Sequence[RankMemory], is_resumed: bool
) -> Proposals | None:
    """Return what makes the job fit into the memory of --device-type; None if it fits, or without the flag."""
    accelerator = _accelerator(arguments.device)
    if accelerator is None:
        return None
    limit = USABLE_SHARE * accelerator.memory
    if max(rank.total for rank in ranks) <= limit:
        return None

    def largest(changed: PretrainArguments) -> int:
        return max(rank.total for rank in _estimate(changed, inputs, every_rank=False)[2])

    return propose_changes(arguments, limit, largest, may_change_optimizer=not is_resumed)


def _attention(derived: DerivedSettings) -> str:
    """Describe the attention kernel and the reason for it."""
    choice = derived.attention
    if choice is None:
        return f"chosen on the device, which is not available here: {derived.attention_error}"
    return f"{choice.kernel.name} ({choice.reason})"


def _start(arguments: PretrainArguments, kind: str, data: DataSummary) -> StartPoint:
    """Find the start point of the run. A --load that does not exist yet is no error."""
    from mindspeed_llm.checkpoints import (
        RunCheckpoints,
        StartPoint,
        TrainingProgress,
        checkpoint_layout,
        compute_identity,
        find_start_point,
    )

    load, save = arguments.checkpoint.load, arguments.checkpoint.save
    resumes = save is not None and RunCheckpoints(Path(save)).latest() is not None
    # A checkpoint in --save takes precedence over --load, so a missing --load does not matter then.
    if load is not None and not Path(load).exists() and not resumes:
        missing = f"--load '{load}' does not exist here; a run needs a checkpoint there"
        return StartPoint("load", None, None, TrainingProgress(), False, False, missing)
    identity = compute_identity(arguments, data.files, data.tokenizer_sha256, data.vocabulary)
    layout = checkpoint_layout(arguments.parallel, arguments.world_size, kind)
    return find_start_point(arguments.checkpoint, arguments.training.train_iters, layout, identity)
