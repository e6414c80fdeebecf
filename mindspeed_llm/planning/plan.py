"""What a dry run finds out."""

from __future__ import annotations

import importlib.util
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mindspeed_llm.arguments.notices import notices
from mindspeed_llm.arguments.pretrain import PretrainArguments
from mindspeed_llm.devices import apply_patches, choose_device
from mindspeed_llm.errors import DeviceError
from mindspeed_llm.planning.activations import Operators
from mindspeed_llm.planning.data import DataPlan, look_at_data

if TYPE_CHECKING:
    from mindspeed_llm.checkpoints import Start
    from mindspeed_llm.planning.ranks import RankPlan

# A run whose length depends on data that is not here, when its schedule is built.
SOME_ITERATIONS = 10**9


@dataclass(frozen=True)
class Plan:
    """A job before it is started.

    Attributes:
        arguments: checked arguments.
        device: 'cpu', 'cuda' or 'npu': what the figures are for.
        operators: of that device.
        attention: the kernel and why.
        padded_vocab_size: rows of the embedding.
        parameters: of one copy of the model, each counted once.
        ranks: what each rank holds; of a large job, of each kind of rank.
        data: what is here of it.
        iterations, train_packs: of the run, those done before included; None where that depends on data that is not
            here.
        start: what the run would start from.
        notices: flags without effect, and what the command changes of a run that goes on.
        seconds: that it took to build and run the ranks.
    """

    arguments: PretrainArguments
    device: str
    operators: Operators
    attention: str
    padded_vocab_size: int
    parameters: int
    ranks: list[RankPlan]
    data: DataPlan
    iterations: int | None
    train_packs: int | None
    start: str
    notices: list[str]
    seconds: float

    @property
    def largest(self) -> RankPlan:
        """The rank that needs the most memory."""
        return max(self.ranks, key=lambda rank: rank.total)


def build_plan(arguments: PretrainArguments) -> Plan:
    """Build the whole job for every rank, without memory for it, and look at what data and checkpoint there are.

    Takes the process: megatron-core's patches for the meta device stay in place.

    Raises:
        UserError: whatever a run would refuse too, but for data, tokenizer or checkpoint that are not here yet.
    """
    kind = _device_kind(arguments.device.device)
    apply_patches("meta")
    from mindspeed_llm.planning.ranks import plan_ranks
    from mindspeed_llm.training.resume import batch_notice, order_unit, place, with_batch_size_of_run
    from mindspeed_llm.training.schedule import Length

    data = look_at_data(arguments)
    start = _start(arguments, kind, data)
    arguments = with_batch_size_of_run(arguments, start)
    data = data.with_order_unit(arguments, order_unit(arguments, start))
    vocabulary = arguments.vocabulary(data.vocabulary)
    known = data.epoch_length > 0 or arguments.training.train_epochs is None
    length = place(arguments, start, data.epoch_length)[1] if known else Length(SOME_ITERATIONS, 0)
    notice = batch_notice(arguments, start, length.batch_sizes) if known else None
    kernel, why = _kernel(arguments, kind)
    operators = Operators.of(kind, arguments, kernel)
    began = time.perf_counter()
    ranks = plan_ranks(arguments, vocabulary, length, operators)
    return Plan(
        arguments=arguments,
        device=kind,
        operators=operators,
        attention=why,
        padded_vocab_size=vocabulary.padded,
        parameters=_parameters(ranks),
        ranks=ranks,
        data=data,
        iterations=length.iterations if known else None,
        train_packs=length.consumed_samples if known else None,
        start=start.reason if notice is None else f"{start.reason}; {notice}",
        notices=[*notices(arguments, kind), *start.notices],
        seconds=time.perf_counter() - began,
    )


def _device_kind(name: str) -> str:
    """The device to plan for: the named one, else this machine's, else an NPU, the accelerator of these scripts."""
    if name != "auto":
        return name
    here = "npu" if importlib.util.find_spec("torch_npu") else choose_device("auto").kind
    return "npu" if here == "cpu" else here


def _kernel(arguments: PretrainArguments, kind: str) -> tuple[str | None, str]:
    """Name of the attention kernel and a clause about it; no name where only the device itself can tell."""
    from mindspeed_llm.attention import choose_kernel
    from mindspeed_llm.model.config import DTYPES

    try:
        choice = choose_kernel(kind, DTYPES[arguments.training.precision], arguments.model.head_size)
    except DeviceError as error:
        return None, f"chosen on the device; not here: {error}"
    return choice.kernel.name, f"{choice.kernel.name} ({choice.reason})"


def _start(arguments: PretrainArguments, kind: str, data: DataPlan) -> Start:
    """What the run would start from; a --load that is not here yet is no error."""
    from mindspeed_llm.checkpoints import CheckpointFolder, Progress, Start, choose_start, identity_of, layout_of

    load, save = arguments.checkpoint.load, arguments.checkpoint.save
    goes_on = save is not None and CheckpointFolder(Path(save)).latest() is not None
    if load is not None and not Path(load).exists() and not goes_on:
        missing = f"--load '{load}' is not here; a run needs a checkpoint there"
        return Start("load", None, None, Progress(), False, False, missing)
    identity = identity_of(arguments, data.files, data.tokenizer_sha256, data.vocabulary)
    return choose_start(arguments, layout_of(arguments, kind), identity)


def _parameters(ranks: list[RankPlan]) -> int:
    """Parameters of one copy of the model, each once: those of every stage."""
    return sum({rank.pipeline: rank.stage_parameters for rank in ranks}.values())
