"""One rank of the layout tests: trains the same three global batches on many layouts, each from one checkpoint.

Started four times by test_training_layouts.py, with RANK set and a folder to work in. A layout of two ranks runs on the
first two while the others wait at the next start. Importing torch and megatron-core costs seconds a process, so all
layouts share these four.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from tiny import VOCABULARY, batch_of, pack, tiny_arguments

from mindspeed_llm.devices import Device, apply_patches

STEPS = 3
GLOBAL_BATCH = 4
COMMON = f"--global-batch-size {GLOBAL_BATCH} --lr 1e-4 --min-lr 1e-5 --train-iters {STEPS} --adam-eps 1e-6"
TP, PP = "--tensor-model-parallel-size", "--pipeline-model-parallel-size"

# name: (ranks, flags, name of the case that it must equal)
CASES: dict[str, tuple[int, str, str]] = {
    "tp1 pp1 dp1": (1, "", "tp1 pp1 dp1"),
    "micro-batch of 2": (1, "--micro-batch-size 2", "tp1 pp1 dp1"),
    "micro-batch of 4": (1, "--micro-batch-size 4", "tp1 pp1 dp1"),
    "full recompute": (
        1,
        "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1",
        "tp1 pp1 dp1",
    ),
    "selective recompute": (1, "--recompute-activations", "tp1 pp1 dp1"),
    "tp2": (2, f"{TP} 2", "tp1 pp1 dp1"),
    "tp2, sequence parallel": (2, f"{TP} 2 --sequence-parallel", "tp1 pp1 dp1"),
    "tp2, sequence parallel, micro-batch of 2": (
        2,
        f"{TP} 2 --sequence-parallel --micro-batch-size 2",
        "tp1 pp1 dp1",
    ),
    "pp2": (2, f"{PP} 2", "tp1 pp1 dp1"),
    "pp2, interleaved": (2, f"{PP} 2 --num-layers-per-virtual-pipeline-stage 1", "tp1 pp1 dp1"),
    "dp2": (2, "", "tp1 pp1 dp1"),
    "dp2, distributed optimizer": (2, "--use-distributed-optimizer", "tp1 pp1 dp1"),
    "dp2, distributed optimizer, overlaps": (
        2,
        "--use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather",
        "tp1 pp1 dp1",
    ),
    "pp4": (4, f"{PP} 4", "tp1 pp1 dp1"),
    "tp2 pp2": (4, f"{TP} 2 {PP} 2", "tp1 pp1 dp1"),
    "tp2 pp2, sequence parallel": (4, f"{TP} 2 {PP} 2 --sequence-parallel", "tp1 pp1 dp1"),
    "tp2 dp2, all of it": (
        4,
        f"{TP} 2 --sequence-parallel --use-distributed-optimizer",
        "tp1 pp1 dp1",
    ),
    "pp2 dp2": (4, f"{PP} 2 --use-distributed-optimizer", "tp1 pp1 dp1"),
    "dp4": (4, "", "tp1 pp1 dp1"),
    "tp4, fewer groups than ranks": (4, f"{TP} 4", "tp1 pp1 dp1"),
    "tied": (1, "TIED", "tied"),
    "tied, pp2": (2, f"TIED {PP} 2", "tied"),
    "tied, tp2 pp2": (4, f"TIED {TP} 2 {PP} 2 --sequence-parallel", "tied"),
    "padded vocabulary": (1, "--make-vocab-size-divisible-by 128", "tp1 pp1 dp1"),
    "padded vocabulary, tp4": (4, f"{TP} 4 --make-vocab-size-divisible-by 128", "tp1 pp1 dp1"),
}

# Odd lengths, one-token samples, full packs, padding; every global batch has packs with few and with many samples.
LENGTHS = [
    [(5, 1, 13, 7), (32,), (11, 20), (3, 3, 3, 3, 3, 3, 3)],
    [(31, 1), (16, 16), (9, 2, 8), (25,)],
    [(1, 1, 1, 29), (12, 20), (7, 7, 7, 7), (6,)],
]


def case_arguments(name: str):
    ranks, flags, _ = CASES[name]
    arguments = tiny_arguments(f"{COMMON} {flags.replace('TIED', '')}", ranks)
    if "TIED" in flags:
        arguments.model.untie_embeddings_and_output_weights = False
    return arguments


def micro_batches(arguments, step: int, replica: int):
    """This replica's micro-batches of a step: micro-batch m of replica r takes packs (m · DP + r) · MBS and on."""
    size, replicas = arguments.training.micro_batch_size, arguments.data_parallel_size
    packs = [pack(lengths, seed=10 * step + number) for number, lengths in enumerate(LENGTHS[step])]
    starts = range(replica * size, GLOBAL_BATCH, replicas * size)
    return [batch_of(packs[start : start + size]) for start in starts]


def train_case(name: str, folder: Path) -> dict | None:
    """Run one case on this rank; its losses and gradient norms on rank 0."""
    from megatron.core import parallel_state

    from mindspeed_llm.checkpoints import (
        CheckpointFolder,
        Progress,
        RunRecord,
        load_weights,
        save_checkpoint,
    )
    from mindspeed_llm.training.job import build_job
    from mindspeed_llm.training.layout import lay_out, leave_layout, seed_ranks
    from mindspeed_llm.training.schedule import Length
    from mindspeed_llm.training.step import train_step

    ranks, _, reference = CASES[name]
    rank = int(os.environ["RANK"])
    if rank >= ranks:
        return None
    slug = name.replace(" ", "_").replace(",", "")
    store = torch.distributed.FileStore(str(folder / f"{slug}.store"), ranks)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
    arguments = case_arguments(name)
    lay_out(arguments)
    seed_ranks(1234)
    job = build_job(arguments, Device("cpu"), VOCABULARY, Length(STEPS, 0))
    start = CheckpointFolder(folder / f"start_{reference.replace(' ', '_')}")
    if name == reference:
        with torch.no_grad():  # norms and biases that are not trivial
            draw = torch.Generator().manual_seed(7)
            for chunk in job.chunks:
                for key, parameter in chunk.named_parameters():
                    if key.endswith(("norm.weight", "bias")):
                        parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw))
        save_checkpoint(start, job.state, RunRecord(Progress(), {}, {}, has_optimizer=False, has_rng=False))
    latest = start.latest()
    assert latest is not None
    load_weights(latest, job.state)

    replica = parallel_state.get_data_parallel_rank()
    result: dict = {"losses": [], "norms": []}
    for step in range(STEPS):
        outcome = train_step(job, micro_batches(arguments, step, replica), torch.device("cpu"))
        job.scheduler.step(GLOBAL_BATCH)
        result["losses"].append(outcome.totals.mean_loss)
        result["norms"].append(outcome.grad_norm)
    end = CheckpointFolder(folder / f"end_{slug}")
    save_checkpoint(end, job.state, RunRecord(Progress(STEPS), {}, {}, has_optimizer=False, has_rng=False))
    leave_layout()
    return result


def weights_of(name: str, folder: Path) -> dict[str, torch.Tensor]:
    """Weights after the last step, loaded into the unsharded model of the case that it must equal. Rank 0 alone."""
    from mindspeed_llm.checkpoints import CheckpointFolder, TrainingState, load_weights
    from mindspeed_llm.model import build_model, padded_vocabulary, transformer_config

    arguments = case_arguments(CASES[name][2])
    config = transformer_config(arguments, "cpu")
    chunks = build_model(arguments, config, *padded_vocabulary(arguments, VOCABULARY))
    slug = name.replace(" ", "_").replace(",", "")
    load_weights(CheckpointFolder(folder / f"end_{slug}").latest(), TrainingState(list(chunks)))
    return {key: value.detach().clone() for key, value in chunks[0].named_parameters()}


def main(folder: Path) -> None:
    apply_patches("cpu")
    from mindspeed_llm.training.layout import lay_out

    torch.set_num_threads(1)
    results = {}
    for name in CASES:
        results[name] = train_case(name, folder)
        print(name, results[name], flush=True)  # kept in the log, for when a later case fails
    if os.environ["RANK"] != "0":
        return
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    lay_out(case_arguments("tp1 pp1 dp1"))
    references = {reference: weights_of(reference, folder) for _, _, reference in CASES.values()}
    for name, result in results.items():
        assert result is not None
        reference, own = references[CASES[name][2]], weights_of(name, folder)
        result["weight_errors"] = {key: float((own[key] - reference[key]).abs().max()) for key in reference}
    (folder / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
