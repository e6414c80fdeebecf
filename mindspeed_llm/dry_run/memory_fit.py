"""Find changes of a command that make a job fit into the memory of an accelerator.

Every change is applied to the arguments, checked by the rules between the flags, and estimated like the plan itself.
Only changes whose estimate is below the limit are proposed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from mindspeed_llm.arguments.pretrain_arguments import PretrainArguments
from mindspeed_llm.arguments.pretrain_parser import RULES
from mindspeed_llm.arguments.rule import violated_rules
from mindspeed_llm.errors import UserError

# Part of the memory of a device that the estimate may fill. The rest is for what it leaves out: workspaces of kernels,
# buffers of collectives, gradients of activations, fragmentation and the context of the driver.
USABLE_SHARE = 0.9
# Tensor-parallel ranks should be devices of one machine, and machines have eight.
MAX_TENSOR_RANKS = 8
FULL_RECOMPUTE = "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1"


@dataclass(frozen=True)
class Proposal:
    """A change of the command line and the memory that it leads to.

    Attributes:
        text: flags to add or to change.
        memory: estimated memory of the largest rank in bytes.
    """

    text: str
    memory: int


@dataclass(frozen=True)
class Proposals:
    """What to change if a job does not fit.

    Attributes:
        fitting: changes that fit, each sufficient alone; or one combination, if no single change is sufficient.
        smallest: the combination with the smallest estimate if nothing fits; None if no change is possible.
    """

    fitting: list[Proposal]
    smallest: Proposal | None = None


@dataclass(frozen=True)
class Change:
    """One change of the arguments.

    Attributes:
        text: flags to add or to change.
        arguments: arguments with the change.
    """

    text: str
    arguments: PretrainArguments


def propose_changes(
    arguments: PretrainArguments,
    limit: float,
    estimate: Callable[[PretrainArguments], int],
    may_change_optimizer: bool = True,
) -> Proposals:
    """Find changes that bring the largest rank to at most `limit` bytes.

    Args:
        arguments: checked arguments of a job that does not fit.
        limit: memory in bytes.
        estimate: returns the estimated memory of the largest rank in bytes. May raise `UserError`.
        may_change_optimizer: False if the run is resumed, whose optimizer must stay the same.
    """
    fitting = []
    for alternatives in (*_optimizer(arguments, may_change_optimizer), *_others(arguments)):
        # The alternatives begin with the one that changes least; a further one is tried if it is not sufficient.
        for change in alternatives:
            memory = _estimated(change, estimate)
            if memory is not None and memory <= limit:
                fitting.append(Proposal(change.text, memory))
                break
    if fitting:
        return Proposals(fitting)
    return _combine(arguments, limit, estimate, may_change_optimizer)


def _combine(
    arguments: PretrainArguments,
    limit: float,
    estimate: Callable[[PretrainArguments], int],
    may_change_optimizer: bool,
) -> Proposals:
    """Add one change after the other, cheap ones first, until the job fits."""
    texts: list[str] = []
    smallest: Proposal | None = None

    def steps() -> Iterator[Callable[[PretrainArguments], Change | None]]:
        if may_change_optimizer:
            yield _with_distributed_optimizer
        yield lambda current: _with_micro_batch(current, 1)
        yield _with_full_recompute
        for _ in range(MAX_TENSOR_RANKS.bit_length() - 1):
            yield lambda current: _with_tensor_ranks(current, 2 * current.parallel.tensor_model_parallel_size)

    current = arguments
    for step in steps():
        change = step(current)
        memory = None if change is None else _estimated(change, estimate)
        if change is None or memory is None:
            continue
        current = change.arguments
        # A further doubling of the tensor-parallel ranks replaces the earlier one.
        texts = [text for text in texts if text.split()[0] != change.text.split()[0]]
        texts.append(change.text)
        proposal = Proposal(" ".join(texts), memory)
        if memory <= limit:
            return Proposals([proposal])
        if smallest is None or memory < smallest.memory:
            smallest = proposal
    return Proposals([], smallest)


def _estimated(change: Change, estimate: Callable[[PretrainArguments], int]) -> int | None:
    """Return the estimate of a change; None if the changed command would be refused."""
    if violated_rules(RULES, change.arguments, change.arguments.groups):
        return None
    try:
        return estimate(change.arguments)
    except UserError:
        return None


def _optimizer(arguments: PretrainArguments, is_possible: bool) -> list[list[Change]]:
    change = _with_distributed_optimizer(arguments) if is_possible else None
    return [[change]] if change is not None else []


def _others(arguments: PretrainArguments) -> Iterator[list[Change]]:
    """Yield for each kind of change its alternatives, the smallest change first."""
    smaller = []
    size = arguments.training.micro_batch_size
    while size > 1:
        size //= 2
        smaller.append(_with_micro_batch(arguments, size))
    yield [change for change in smaller if change is not None]
    activation = _with_activation_recompute(arguments)
    yield [activation] if activation is not None else []
    full = _with_full_recompute(arguments)
    yield [full] if full is not None else []
    ranks, larger = arguments.parallel.tensor_model_parallel_size, []
    while ranks < MAX_TENSOR_RANKS:
        ranks *= 2
        larger.append(_with_tensor_ranks(arguments, ranks))
    yield [change for change in larger if change is not None]


def _changed(arguments: PretrainArguments, text: str, group: str, **values: Any) -> Change:
    """Return a change of one group of arguments that keeps the global batch size of the job."""
    size = arguments.global_batch_size
    changed = dataclasses.replace(arguments, **{group: dataclasses.replace(getattr(arguments, group), **values)})
    if changed.global_batch_size != size:
        # Without the flag the batch follows from the micro-batch and the ranks, and training would change.
        training = dataclasses.replace(changed.training, global_batch_size=size)
        changed, text = dataclasses.replace(changed, training=training), f"{text} --global-batch-size {size}"
    return Change(text, changed)


def _with_distributed_optimizer(arguments: PretrainArguments) -> Change | None:
    if arguments.parallel.use_distributed_optimizer or arguments.data_parallel_size == 1:
        return None
    return _changed(arguments, "--use-distributed-optimizer", "parallel", use_distributed_optimizer=True)


def _with_micro_batch(arguments: PretrainArguments, size: int) -> Change | None:
    if size >= arguments.training.micro_batch_size:
        return None
    return _changed(arguments, f"--micro-batch-size {size}", "training", micro_batch_size=size)


def _with_activation_recompute(arguments: PretrainArguments) -> Change | None:
    training = arguments.training
    if training.recompute == "full" or training.recompute_activation_function:
        return None
    flag = "--recompute-activation-function"
    return _changed(arguments, flag, "training", recompute_activation_function=True)


def _with_full_recompute(arguments: PretrainArguments) -> Change | None:
    training = arguments.training
    if training.recompute == "full" and training.recompute_method == "uniform":
        return None
    replaced = [
        flag
        for flag, is_given in (
            ("--recompute-activations", training.recompute_activations),
            ("--recompute-activation-function", training.recompute_activation_function),
        )
        if is_given
    ]
    text = FULL_RECOMPUTE + (f" without {' and '.join(replaced)}" if replaced else "")
    return _changed(
        arguments,
        text,
        "training",
        recompute_granularity="full",
        recompute_method="uniform",
        recompute_num_layers=1,
        recompute_activations=False,
        recompute_activation_function=False,
        recompute_activation_function_num_layers=None,
    )


def _with_tensor_ranks(arguments: PretrainArguments, ranks: int) -> Change | None:
    if ranks > MAX_TENSOR_RANKS:
        return None
    parallel = arguments.parallel
    text = f"--tensor-model-parallel-size {ranks}{'' if parallel.sequence_parallel else ' --sequence-parallel'}"
    # A size that does not divide the ranks leaves no data-parallel rank, from which the batch follows.
    if arguments.world_size % (parallel.pipeline_model_parallel_size * ranks):
        return None
    return _changed(arguments, text, "parallel", tensor_model_parallel_size=ranks, sequence_parallel=True)
