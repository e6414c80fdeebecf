"""Run one rank of the layout tests of pretraining: documents from files, in blocks, on several layouts.

Started by test_pretraining_layouts.py with RANK set, a folder to work in, and 'short' or 'long'. Rank 0 compares every
layout with the reference of reference_qwen2.py, which gets its tokens from a concatenation of the documents in numpy.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import layouts_program as layouts
import numpy as np
import reference_qwen2 as reference
import torch
from document_files import EOD, concatenated, random_documents, write_documents
from thread_counts import threads_after_job, write_thread_counts
from tiny import SHAPE

from mindspeed_llm.devices import Device, apply_patches

STEPS, BATCH, S = 3, 4, 32
TP, PP = layouts.TP, layouts.PP
SEPARATED = "--reset-position-ids"
RUN = (
    f"{SHAPE} --seq-length {S} --no-save-model "
    f"--micro-batch-size 1 --global-batch-size {BATCH} --lr 1e-4 --min-lr 1e-5 "
    f"--lr-decay-style cosine --weight-decay 0.1 --adam-beta2 0.95 --adam-eps 1e-6 --train-iters {STEPS} "
    "--split 80,20,0 --eval-iters 2 --seed 11 --loss-chunk-size 7"
)


@dataclass(frozen=True)
class Case:
    """One run: ranks and flags."""

    ranks: int
    flags: str


CASES = {
    "one rank": Case(1, SEPARATED),
    "one rank, one causal sequence": Case(1, ""),
    "tp2, sequence parallel": Case(2, f"{TP} 2 --sequence-parallel {SEPARATED}"),
    "tp2, one causal sequence": Case(2, f"{TP} 2"),
    "pp2": Case(2, f"{PP} 2 {SEPARATED}"),
    "pp2, micro-batch of 2, mask alone": Case(2, f"{PP} 2 --micro-batch-size 2 --reset-attention-mask"),
    "dp2, distributed optimizer": Case(2, f"--use-distributed-optimizer {SEPARATED}"),
    "dp2, dense loss": Case(2, f"--loss-chunk-size 0 {SEPARATED}"),
}
# With four ranks, in the long suite.
LONG_CASES = {
    "tp2, pp2, sequence parallel": Case(4, f"{TP} 2 {PP} 2 --sequence-parallel {SEPARATED}"),
    "pp2, interleaved": Case(2, f"{PP} 2 --num-layers-per-virtual-pipeline-stage 1 {SEPARATED}"),
    "pp2, dp2": Case(4, f"{PP} 2 --use-distributed-optimizer {SEPARATED}"),
    "tp2, dp2": Case(4, f"{TP} 2 --sequence-parallel --use-distributed-optimizer {SEPARATED}"),
}


def samples_of(block: np.ndarray, separated: bool) -> list[reference.Sample]:
    """Return the segments of a block of S + 1 tokens; the label of an end token is the first token after it."""
    ends = [int(place) + 1 for place in np.flatnonzero(block[:-1] == EOD)] if separated else []
    ends = sorted({*ends, len(block) - 1})
    # One token more than the segment: the target of its last slot.
    parts = [torch.from_numpy(block[start : end + 1]) for start, end in zip([0, *ends], ends, strict=False)]
    return [(part, part) for part in parts]


def numpy_blocks(documents: list[np.ndarray]) -> np.ndarray:
    """Return the blocks of concatenated documents; int64 [blocks, S + 1]."""
    stream = concatenated(documents).astype(np.int64)
    return np.stack([stream[start : start + S + 1] for start in range(0, len(stream) - S, S)])


def truth_of(case: Case, start: dict, blocks: np.ndarray, numbers: np.ndarray, known: dict) -> dict:
    """Return the reference's run of a case."""
    separated = "--reset" in case.flags
    if separated not in known:
        batches = [
            reference.weighted([samples_of(block, separated) for block in blocks[step]], "token")
            for step in numbers.reshape(STEPS, BATCH)
        ]
        known[separated] = reference.train(start, batches, reference.Shape(), reference.Recipe(steps=STEPS))
    return known[separated]


def held_out_loss(blocks: np.ndarray, weights: dict, separated: bool) -> float:
    """Return the mean loss of the first two global batches of the validation blocks."""
    samples = [sample for block in blocks[: 2 * BATCH] for sample in samples_of(block, separated)]
    losses = sum(float(reference.sample_loss(sample, weights, reference.Shape()).detach()) for sample in samples)
    return losses / sum(map(reference.trained_targets, samples))


def train_case(number: int, case: Case, folder: Path) -> dict | None:
    """Run one case on this rank; what it gave, on rank 0."""
    from tiny_model import derived_of

    from mindspeed_llm.arguments.pretrain_parser import parse_pretrain_arguments
    from mindspeed_llm.checkpoints import RunCheckpoints, load_weights
    from mindspeed_llm.data import build_datasets
    from mindspeed_llm.training.dataloaders import build_dataloaders
    from mindspeed_llm.training.model_and_optimizer import setup_model_and_optimizer
    from mindspeed_llm.training.process_groups import destroy_process_groups, init_process_groups, seed_ranks
    from mindspeed_llm.training.train_step import evaluate, train_step

    rank = int(os.environ["RANK"])
    if rank >= case.ranks:
        return None
    words = f"{RUN} {case.flags} --data-path {folder / 'data_text_document'}".split()
    arguments = parse_pretrain_arguments(words, case.ranks)
    store = torch.distributed.FileStore(str(folder / f"{number}.store"), case.ranks)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=case.ranks)
    init_process_groups(arguments.parallel, arguments.virtual_stages)
    seed_ranks(1234)
    datasets = build_datasets(arguments.data, arguments.training.seed, evaluate=True)
    order = datasets.train_order(arguments.data, arguments.training.seed, BATCH)
    derived = replace(derived_of(arguments, STEPS), order=order)
    job = setup_model_and_optimizer(arguments, Device("cpu"), derived)
    start = RunCheckpoints(folder / "start_untied")
    if not start.path.exists():  # the first case has one rank
        layouts.make_start(job, start)
    load_weights(start.latest(), job.state)
    loaders = build_dataloaders(arguments.data, arguments.training, datasets, derived, Device("cpu"))
    result: dict = {"losses": [], "norms": [], "gradients": [], "numbers": order.positions(0, STEPS * BATCH)}
    if case.ranks == 1:
        result["start"] = {key: part for key, (part, _) in layouts.own_part(job.chunks, lambda weight: weight).items()}
    held_out = []
    for batch in range(2):
        batches = list(loaders["valid"].micro_batches(batch * BATCH))
        sources = ["another", *loaders["valid"].dataset.sources]
        held_out.append(evaluate(job, batches, torch.device("cpu"), sources))
    sums = held_out[0][1] + held_out[1][1]
    result["held out"] = float(sums.loss[1] / sums.tokens[1]), float(sums.tokens[0]), int(sums.tokens[1])
    result["held out mean"] = (held_out[0][0] + held_out[1][0]).mean_loss
    update = job.optimizer.step

    def look_and_update():
        layouts.gather_reduced_gradients(job, arguments)
        parts = layouts.own_part(job.chunks, lambda weight: weight.main_grad)
        result["gradients"].append(layouts.gather_full(parts, case.ranks))
        return update()

    job.optimizer.step = look_and_update
    for step in range(STEPS):
        outcome = train_step(job, list(loaders["train"].micro_batches(step * BATCH)), torch.device("cpu"))
        job.scheduler.step(BATCH)
        result["losses"].append(outcome.totals.mean_loss)
        result["norms"].append(outcome.grad_norm)
    job.state.finish_gathering()
    result["weights"] = layouts.gather_full(layouts.own_part(job.chunks, lambda weight: weight), case.ranks)
    destroy_process_groups()
    return result


def main(folder: Path, which: str) -> None:
    apply_patches("cpu")
    torch.set_num_threads(1)
    from mindspeed_llm.arguments.data_arguments import DataArguments
    from mindspeed_llm.data import build_datasets

    documents = random_documents(60, seed=5, longest=50)
    if os.environ["RANK"] == "0":
        write_documents(folder / "data", documents)
        (folder / "written").touch()
    while not (folder / "written").exists():
        time.sleep(0.05)
    data = DataArguments(seq_length=S, data_path=[str(folder / "data_text_document")], split="80,20,0")
    blocks = {}
    for name in ("train", "valid"):
        stream = build_datasets(data, 11, evaluate=True).split(name).components[0].stream
        chosen = stream.selection.mask(0, len(documents))
        blocks[name] = numpy_blocks([each for each, is_chosen in zip(documents, chosen, strict=True) if is_chosen])
    start: dict = {}
    known: dict = {}
    errors: dict[str, dict] = {}
    threads: list[int] = []
    for number, (name, case) in enumerate((LONG_CASES if which == "long" else CASES).items()):
        result = train_case(number, case, folder)
        if result is None:
            continue
        threads.append(threads_after_job())
        if os.environ["RANK"] != "0":
            continue
        start = start or result["start"]
        truth = truth_of(case, start, blocks["train"], result["numbers"], known)
        loss, other, tokens = result["held out"]
        weights = {key: value.double() for key, value in start.items()}
        true = held_out_loss(blocks["valid"], weights, "--reset" in case.flags)
        errors[name] = layouts.errors_of(result, truth) | {
            "held out": abs(loss - true) / true,
            "held out mean": abs(result["held out mean"] - true) / true,
            "held out tokens": [other, tokens],
        }
        print(name, errors[name]["loss"], flush=True)
    write_thread_counts(folder, threads)
    if errors:
        (folder / "results.json").write_text(json.dumps(errors))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
