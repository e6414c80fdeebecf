"""Runs of several steps with LoRA: saved and resumed on other layouts, in bfloat16, and beside the base alone.

Used by lora_program.py, in whose processes they run.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from layouts_program import Case, gather_full, micro_batches
from thread_counts import threads_after_job

from mindspeed_llm.errors import CheckpointError

PACKS = 4  # of every global batch, on every layout


@dataclass
class Rank:
    """One rank of a job that trains an adapter.

    Attributes:
        job: model and optimizer.
        case: layout of the job.
        arguments: its arguments.
        batches: makes the micro-batches of a replica in a step.
    """

    job: Any
    case: Case
    arguments: Any
    batches: Callable[[Case, int, int], list] = micro_batches

    def train(self, first: int, last: int) -> list[float]:
        """Train the steps from first to before last; the loss of each."""
        from megatron.core import parallel_state

        from mindspeed_llm.training.train_step import train_step

        losses = []
        for step in range(first, last):
            batches = self.batches(self.case, step, parallel_state.get_data_parallel_rank())
            losses.append(train_step(self.job, batches, torch.device("cpu")).totals.mean_loss)
        self.job.state.finish_gathering()
        return losses

    def save(self, folder: Path) -> None:
        from mindspeed_llm.checkpoints import RunCheckpoints, RunMetadata, TrainingProgress, begin_save

        record = RunMetadata(TrainingProgress(), {}, {}, has_rng=False)
        begin_save(RunCheckpoints(folder), self.job.state, record).finish()

    def load(self, folder: Path) -> None:
        from mindspeed_llm.checkpoints import RunCheckpoints, load_training_state

        load_training_state(RunCheckpoints(folder).latest(), self.job.state, optimizer=True, rng=False)


Start = Callable[[Case, str], "contextlib.AbstractContextManager[Rank | None]"]


def layout(flags: str, ranks: int) -> Case:
    """A layout with a global batch of PACKS packs."""
    case = Case(ranks, flags, 1, 1, "", 0)
    return replace(case, accumulation=PACKS // case.replicas)


def run_courses(folder: Path, start: Start, trained: Callable[[Any], dict], bf16_steps: int) -> dict[str, Any]:
    """Run all courses; what they gave, on rank 0.

    Args:
        start: builds a job on a layout with further flags; yields None on ranks that it does not have.
        trained: this rank's parts of the trained parameters.
        bf16_steps: length of the course in bfloat16.
    """
    results: dict[str, Any] = {}
    tensor, pipeline = "--tensor-model-parallel-size", "--pipeline-model-parallel-size"
    one, two = layout("", 1), layout(f"{tensor} 2 --sequence-parallel", 2)

    def course(name: str, case: Case, steps: tuple[int, int], load: str = "", save: str = "", flags: str = "") -> None:
        with start(case, flags) as rank:
            if rank is None:
                return
            if load:
                rank.load(folder / load)
            losses = rank.train(*steps)
            if save:
                rank.save(folder / save)
            weights = gather_full(trained(rank.job.chunks), case.ranks)
            if os.environ["RANK"] == "0":
                results[name] = {"losses": losses, "weights": weights}

    course("whole", two, (0, 6))
    course("tp2", two, (0, 2), save="a")
    course("tp1", one, (2, 4), load="a", save="b")
    course("tp4", layout(f"{tensor} 4", 4), (4, 6), load="b")
    course("pp2", layout(f"{pipeline} 2", 2), (4, 6), load="b")
    buckets = "--use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather --ddp-bucket-size 3000"
    replicas = layout(buckets, 2)
    course("buckets, whole", replicas, (0, 4))
    course("buckets, first", replicas, (0, 2), save="c")
    course("buckets, second", replicas, (2, 4), load="c")
    with base_sharding():
        course("wrong sharding, tp2", two, (0, 2), save="d")
    refused: bool | None = None
    with start(one, "") as rank:
        if rank is not None:
            try:
                rank.load(folder / "d")
            except CheckpointError as error:
                refused = "does not fit this model" in str(error)
    # gather_full asserts that replicated factors are the same on all tensor-parallel ranks.
    course("bf16", layout(f"{tensor} 2 --sequence-parallel", 4), (0, bf16_steps), flags="--bf16")
    return compared(results) | {"wrong sharding is refused": refused}


def compared(results: dict[str, Any]) -> dict[str, Any]:
    """What the tests look at, as plain numbers."""
    if not results:
        return {}

    def differ(one: str, other: str) -> float:
        first, second = results[one]["weights"], results[other]["weights"]
        return max(float((first[name] - second[name]).abs().max()) for name in first)

    return {
        "losses": {name: own["losses"] for name, own in results.items()},
        "resumed weights": max(differ("whole", "tp4"), differ("whole", "pp2")),
        "buckets": differ("buckets, whole", "buckets, second"),
    }


@contextlib.contextmanager
def base_sharding() -> Iterator[None]:
    """Save with the sharding of megatron-core's linear layers, which do not know the factors."""
    from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear

    from mindspeed_llm.tuning import LoraColumnParallelLinear, LoraRowParallelLinear

    own = [(kind, kind.sharded_state_dict) for kind in (LoraColumnParallelLinear, LoraRowParallelLinear)]
    LoraColumnParallelLinear.sharded_state_dict = ColumnParallelLinear.sharded_state_dict
    LoraRowParallelLinear.sharded_state_dict = RowParallelLinear.sharded_state_dict
    try:
        yield
    finally:
        for kind, method in own:
            kind.sharded_state_dict = method


def run_base_alone(folder: Path, start: Start) -> dict[str, bool]:
    """Whether an adapter with B = 0 leaves every loss of the base as it is, bit for bit; on rank 0."""
    from megatron.core.utils import unwrap_model

    from mindspeed_llm.model import PackedBoundaries

    outcome: dict[str, bool] = {}
    for name, case in {
        "tp1": layout("", 1),
        "tp2": layout("--tensor-model-parallel-size 2 --sequence-parallel", 2),
    }.items():
        losses = []
        for targets in ("--lora-target-modules all-linear", "--lora-target-modules linear_qkv linear_fc1", ""):
            with start(case, f"{targets} --loss-chunk-size 0" if targets else "BASE") as rank:
                if rank is None:
                    continue
                batch = micro_batches(case, 0, 0)[0]
                boundaries = PackedBoundaries(actual_seq_len=batch.actual_seq_len, positions=batch.positions)
                (chunk,) = unwrap_model(rank.job.chunks)
                with torch.no_grad():
                    losses.append(
                        chunk(
                            batch.tokens, batch.positions[None], None, labels=batch.labels, packed_seq_params=boundaries
                        )
                    )
        if losses:
            outcome[name] = all(torch.equal(own, losses[-1]) for own in losses)
    threads_after_job()
    return outcome
