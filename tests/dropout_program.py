"""One rank of the dropout tests: forward and backward of a model of GPT-2's shape, with every mask recorded.

Started four times by test_gpt2.py with RANK set and a folder to work in. Each case is run by as many of the four as it
needs, from the same weights; loss, gradients and masks of each rank go into a file.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from layouts_program import FULL, PP, TP, gather_full, own_part
from thread_counts import threads_after_job, write_thread_counts
from tiny import GPT2_SHAPE, batch_of, pack, tiny_arguments

from mindspeed_llm.devices import Device, apply_patches

RATE = 0.3
LENGTHS = (5, 1, 13, 7)  # and 6 slots of padding
# name → (ranks, flags)
CASES = {
    "tp1": (1, ""),
    "tp2 dp2": (4, f"{TP} 2"),
    "tp2 dp2, sequence parallel": (4, f"{TP} 2 --sequence-parallel"),
    "pp2": (2, f"{PP} 2"),
}
RECOMPUTED = {
    f"{name}, full recompute": (CASES[name][0], f"{CASES[name][1]} {FULL}")
    for name in ("tp1", "tp2 dp2, sequence parallel", "pp2")
}


def batch_of_replica(replica: int):
    return batch_of([pack(LENGTHS, seed=replica)])


def run_case(name: str, ranks: int, flags: str, folder: Path) -> None:
    """Run one step without an update, and save what it gave."""
    from layouts_program import make_start
    from megatron.core import parallel_state
    from tiny_model import derived_of

    from mindspeed_llm.checkpoints import RunCheckpoints, load_weights
    from mindspeed_llm.training.model_and_optimizer import setup_model_and_optimizer
    from mindspeed_llm.training.process_groups import destroy_process_groups, init_process_groups, seed_ranks
    from mindspeed_llm.training.train_step import train_step

    rank = int(os.environ["RANK"])
    number = [*CASES, *RECOMPUTED].index(name)
    store = torch.distributed.FileStore(str(folder / f"{number}.store"), ranks)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
    flags = f"{flags} --hidden-dropout {RATE} --lr 0 --min-lr 0 --clip-grad 0"
    arguments = tiny_arguments(flags, ranks, GPT2_SHAPE)
    init_process_groups(arguments.parallel)
    seed_ranks(1234)
    job = setup_model_and_optimizer(arguments, Device("cpu"), derived_of(arguments, 1))
    start = RunCheckpoints(folder / "start")
    if not start.path.exists():  # the first case has one rank
        make_start(job, start)
    load_weights(start.latest(), job.state)
    weights = gather_full(own_part(job.chunks, lambda weight: weight), ranks, gated=False)
    seed_ranks(77)
    masks: list[torch.Tensor] = []
    dropout = torch.nn.functional.dropout

    def recorded(values: torch.Tensor, p: float, training: bool = True, inplace: bool = False) -> torch.Tensor:
        # Of ones with the same random state: a value that is 0 by itself would show no mask.
        state = torch.get_rng_state()
        masks.append(dropout(torch.ones_like(values), p, training) != 0)
        torch.set_rng_state(state)
        return dropout(values, p, training, inplace)

    torch.nn.functional.dropout = recorded
    outcome = train_step(job, [batch_of_replica(parallel_state.get_data_parallel_rank())], torch.device("cpu"))
    torch.nn.functional.dropout = dropout
    gradients = gather_full(own_part(job.chunks, lambda weight: weight.main_grad), ranks, gated=False)
    place = (
        parallel_state.get_tensor_model_parallel_rank(),
        parallel_state.get_data_parallel_rank(),
        parallel_state.get_pipeline_model_parallel_rank(),
    )
    result = {"place": place, "loss": outcome.totals.mean_loss, "masks": masks}
    result |= {"gradients": gradients or {}, "weights": weights or {}}
    torch.save(result, folder / f"{name} {rank}.pt")
    destroy_process_groups()


def main(folder: Path) -> None:
    apply_patches("cpu")
    torch.set_num_threads(1)
    threads = []
    for name, (ranks, flags) in {**CASES, **RECOMPUTED}.items():
        if int(os.environ["RANK"]) < ranks:
            run_case(name, ranks, flags, folder)
            threads.append(threads_after_job())
    write_thread_counts(folder, threads)
    (folder / f"done{os.environ['RANK']}").touch()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
