"""What a layer does does not grow with the segments of its micro-batch, and no layer reads a value from the device.

Counted are the operators that reach the dispatcher, and the lines of Python of this project and of megatron-core, in
forward and backward of all layers, for packs of 2 and of 400 segments. The NPU's path is counted whole, its operators
being those of tests/npu_operators.py. On the CPU attention goes segment by segment; there it is one operator instead,
so that everything around it is counted.

The branches of an adapter communicate tensors of their rank's width only. The collectives of a training step are
counted on one rank of a job, with process groups that send nothing.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import npu_operators
import pytest
import torch
from tiny import batch_of, pack, tiny_arguments
from torch.utils._python_dispatch import TorchDispatchMode

import mindspeed_llm
from mindspeed_llm.devices import Device, select_device

SLOTS = 800
FEW, MANY = (400, 400), (2,) * 400
FUSED = "--use-fused-rmsnorm --use-fused-swiglu --use-fused-rotary-pos-emb"
RECOMPUTED = "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1"
CASES = {"cpu": "", "npu": "", "npu, fused": FUSED, "npu, recomputed": RECOMPUTED}
# The size of their result depends on values, or they are the value: on a device the host waits for it.
READS = ("_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "_unique2", "masked_select")


class Operators(TorchDispatchMode):
    """Counts operators by name, and those that read values."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.reads: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func).split(".")[1]
        self.calls[str(func)] += 1
        by_mask = name in ("index", "index_put", "index_put_") and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        self.reads[name] += name in READS or by_mask
        return func(*args, **(kwargs or {}))


class Lines:
    """Counts lines of Python of mindspeed_llm and megatron. A backward pass on the CPU runs in the thread that asks."""

    def __init__(self) -> None:
        import megatron.core

        self.count = 0
        # Directories of the packages, because the checkout may have the name of a package.
        self.counted = tuple(f"{Path(package.__file__).parent}{os.sep}" for package in (mindspeed_llm, megatron.core))

    def __enter__(self) -> Lines:
        self.before = sys.gettrace()
        sys.settrace(self._call)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self.before)

    def _call(self, frame: Any, event: str, argument: Any) -> Callable[..., Any] | None:
        return self._line if frame.f_code.co_filename.startswith(self.counted) else None

    def _line(self, frame: Any, event: str, argument: Any) -> Callable[..., Any]:
        self.count += event == "line"
        return self._line


class OneOperator(torch.autograd.Function):
    """A few operators whatever the boundaries: in the place of a fused kernel, without its numbers."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        ctx.shape = key.shape
        return query * 0.5

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return gradient * 0.5, gradient.new_zeros(ctx.shape), gradient.new_zeros(ctx.shape)


def one_call(query: Any, key: Any, value: Any, ends: tuple[int, ...], scale: float) -> torch.Tensor:
    """A kernel over OneOperator."""
    return OneOperator.apply(query, key, value)


@pytest.fixture(scope="module", autouse=True)
def operators(one_rank):
    npu_operators.install()
    yield
    npu_operators.remove()


@pytest.fixture(scope="module")
def build(one_rank):
    """From a case, and a kernel to use instead of the device's, to: segment lengths → forward and backward."""
    from tiny_model import build_tiny_model

    from mindspeed_llm.model import PackedBoundaries
    from mindspeed_llm.model.core_attention import PackedAttention

    def make(case: str, kernel: Any = None) -> Callable[[tuple[int, ...]], Callable[[], None]]:
        device = case.partition(",")[0]
        arguments = tiny_arguments(f"--num-layers 2 --seq-length {SLOTS} {CASES[case]}")
        [model] = build_tiny_model(arguments, device, use_cpu_initialization=True)
        for module in model.modules():
            if kernel is not None and isinstance(module, PackedAttention):
                module.kernel = kernel

        def step(lengths: tuple[int, ...]) -> Callable[[], None]:
            batch = batch_of([pack(lengths, 0, SLOTS)])

            def forward_and_backward() -> None:
                boundaries = PackedBoundaries(actual_seq_len=batch.actual_seq_len, positions=batch.positions)
                logits = model(batch.tokens, batch.positions[None], None, packed_seq_params=boundaries)
                logits.sum().backward()

            return forward_and_backward

        step(FEW)()  # tables, masks and gradients that are made once
        return step

    return make


def seen_in(step: Callable[[], None]) -> Operators:
    with Operators() as seen:
        step()
    return seen


def lines_of(step: Callable[[], None]) -> int:
    with Lines() as lines:
        step()
    return lines.count


@pytest.fixture(params=CASES)
def steps(request, build):
    return build(request.param, one_call if request.param == "cpu" else None)


def test_operators_do_not_grow_with_segments(steps):
    few, many = seen_in(steps(FEW)), seen_in(steps(MANY))
    assert few.calls == many.calls and sum(few.calls.values()) > 50


def test_python_does_not_grow_with_segments(steps):
    few, many = lines_of(steps(FEW)), lines_of(steps(MANY))
    assert few == many > 300


def test_no_layer_reads_a_value(steps):
    assert not +seen_in(steps(MANY)).reads


def test_the_cpus_own_kernel_reads_no_value_either(build):
    assert not +seen_in(build("cpu")(MANY)).reads


def test_the_growth_check_can_fail(build):
    """Segment by segment, both counts grow."""
    from mindspeed_llm.attention.segment_attention import SegmentAttention

    steps = build("cpu", SegmentAttention())
    assert sum(seen_in(steps(MANY)).calls.values()) > 5 * sum(seen_in(steps(FEW)).calls.values())
    assert lines_of(steps(MANY)) > 1.1 * lines_of(steps(FEW))


@pytest.mark.parametrize(
    "read",
    [
        lambda query: query.flatten()[0].item(),
        lambda query: query[query[:, 0, 0] > 0],
        lambda query: bool((query > 0).any()),
    ],
    ids=["item", "a mask as index", "a condition"],
)
def test_the_read_check_can_fail(build, read):
    def kernel(query, key, value, ends, scale):
        read(query.detach())
        return one_call(query, key, value, ends, scale)

    assert +seen_in(build("cpu", kernel)(FEW)).reads


class Collectives(TorchDispatchMode):
    """Counts collectives by name and shape of the tensor that they write."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[tuple[str, tuple[int, ...]]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            output = args[0]
            while not isinstance(output, torch.Tensor):
                output = output[0]
            self.calls[func._opname, tuple(output.shape)] += 1
        return func(*args, **(kwargs or {}))


RANK = 4
BATCHES = 2


@pytest.fixture
def collectives_of(one_rank):
    """From flags to the collectives of a training step on rank 0 of a tensor-parallel job."""
    from tiny_model import derived_of

    from mindspeed_llm.dry_run.rank_memory import simulated_rank
    from mindspeed_llm.training import destroy_process_groups, init_distributed
    from mindspeed_llm.training.model_and_optimizer import setup_model_and_optimizer
    from mindspeed_llm.training.train_step import train_step

    def count(flags: str) -> Counter[tuple[str, tuple[int, ...]]]:
        ranks = int(flags.split()[0])
        arguments = tiny_arguments(f"--tensor-model-parallel-size {flags} --global-batch-size {BATCHES}", ranks)
        with simulated_rank(arguments, 0):
            # The device of a dry run has no gloo groups; all tensors are on the CPU all the same.
            model_and_optimizer = setup_model_and_optimizer(arguments, Device("meta"), derived_of(arguments, 1))
            batches = [batch_of([pack((5, 13, 9), seed)]) for seed in range(BATCHES)]
            with Collectives() as seen:
                train_step(model_and_optimizer, batches, torch.device("cpu"))
        return seen.calls

    destroy_process_groups()
    yield count
    init_distributed(tiny_arguments(), select_device("cpu"))


# Flags of the job → collectives of one branch in a micro-batch, by kind of layer: name and slots of the result.
GATHER, SCATTER, REDUCE = ("_allgather_base_", 32), ("_reduce_scatter_base_", 16), ("allreduce_", 32)
OF_BRANCH = {
    "2 --sequence-parallel": {"column": (GATHER, SCATTER), "row": (SCATTER, GATHER)},
    "2": {"column": (REDUCE,), "row": (REDUCE,)},
}
# Targets → kind and number of factors A of each linear layer that has a branch.
BRANCHES = {
    "all-linear": (("column", 3), ("row", 1), ("column", 2), ("row", 1)),
    "linear_qkv linear_proj linear_fc1 linear_fc2": (("column", 1), ("row", 1), ("column", 1), ("row", 1)),
    "q_proj v_proj": (("column", 2),),
    "down_proj": (("row", 1),),
}


def added_by_branches(collectives_of: Any, flags: str, targets: str) -> Counter[tuple[str, tuple[int, ...]]]:
    """Collectives of a step with an adapter that the same step without the branches has not."""
    from mindspeed_llm.tuning import LoraColumnParallelLinear, LoraRowParallelLinear

    flags = f"{flags} --lora-r {RANK} --lora-target-modules {targets}"
    adapted = collectives_of(flags)
    with pytest.MonkeyPatch.context() as patched:
        for layer in (LoraColumnParallelLinear, LoraRowParallelLinear):
            patched.setattr(layer, "forward", layer.__base__.forward)
        alone = collectives_of(flags)
    assert not alone - adapted and any(shape[-1] == 64 for _, shape in alone)
    return adapted - alone


@pytest.mark.parametrize("targets", BRANCHES)
@pytest.mark.parametrize("flags", OF_BRANCH)
def test_a_low_rank_branch_communicates_tensors_of_its_rank_only(collectives_of, flags, targets):
    added = added_by_branches(collectives_of, flags, targets)
    layers_and_batches = 4 * BATCHES
    expected: Counter[tuple[str, tuple[int, ...]]] = Counter()
    for kind, factors in BRANCHES[targets]:
        for name, slots in OF_BRANCH[flags][kind]:
            expected[name, (slots, 1, factors * RANK)] += layers_and_batches
    assert added == expected


def test_fewer_groups_than_ranks_communicate_factors_of_the_rank_too(collectives_of):
    added = added_by_branches(collectives_of, "4 --sequence-parallel", "q_proj v_proj")
    factors = {("allreduce_", (rows, RANK)) for rows in (64, 32)}  # the gradients of the factors B, whole on each rank
    assert factors < set(added) and {shape[-1] for _, shape in added} == {RANK, 2 * RANK}


def test_the_communication_check_can_fail(collectives_of, monkeypatch):
    from megatron.core.tensor_parallel import gather_from_sequence_parallel_region

    from mindspeed_llm.tuning import lora_linear

    def gathered(layer: Any, input_: torch.Tensor, differs: bool) -> torch.Tensor:
        return gather_from_sequence_parallel_region(input_, group=layer.tp_group)[: len(input_)]

    monkeypatch.setattr(lora_linear, "_dropped", gathered)
    added = added_by_branches(collectives_of, "2 --sequence-parallel", "all-linear")
    assert 64 in {shape[-1] for _, shape in added}
