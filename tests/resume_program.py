"""Run one rank of the resume tests: runs that are stopped and resumed on the same layout and on others.

Started four times by test_training_resume.py, with RANK set and a folder that holds the data. Each part of a course is
pretrain_gpt.py's main on as many ranks as it has; the others wait at the next start. What torchrun would give (a store
for the job) is a file here, so that one set of processes can do it all.
"""

from __future__ import annotations

import hashlib
import importlib
import itertools
import json
import os
import signal
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from thread_counts import threads_after_job, write_thread_counts
from tiny_runs import RUN

from mindspeed_llm.devices import apply_patches

ITERATIONS = 9
# 18 packs in batches of 4: the first epoch ends in the middle of the fifth iteration, the second with the ninth.
PACKS = 18
TP, PP = "--tensor-model-parallel-size", "--pipeline-model-parallel-size"
COMMON = f"--no-save-model --micro-batch-size 1 --split 100,0,0 --eval-iters 0 --train-iters {ITERATIONS} --lr 1e-3"
# Dropout makes results depend on the RNG state, and the decaying learning rate makes them depend on the schedule.
DRAWING = "--hidden-dropout 0.1"


@dataclass(frozen=True)
class Part:
    """One start of a command.

    Attributes:
        ranks: number of ranks.
        flags: additional flags.
        until: iteration after which SIGTERM ends the run.
        tied: whether the output layer shares the weights of the embedding.
    """

    ranks: int
    flags: str
    until: int = ITERATIONS
    tied: bool = False


# Several buckets, of one or a few matrices each. An odd number of a rank's vocabulary rows of 64 makes the embedding's
# bucket end in padding: it is no multiple of 128 parameters.
BUCKETS = "--use-distributed-optimizer --overlap-grad-reduce --ddp-bucket-size 9000"
ODD_ROWS, ODD_HALVES = "--vocab-size 301", "--vocab-size 302"
TP2, DP4 = Part(2, f"{TP} 2 --sequence-parallel"), Part(4, "")
UNEVEN_PP2 = Part(2, f"{PP} 2 --num-layer-list 3,1")
SHARDED = f"{TP} 2 --sequence-parallel --bf16 {BUCKETS} {ODD_HALVES} --overlap-param-gather {DRAWING}"
INTERLEAVED = f"{PP} 2 --num-layers-per-virtual-pipeline-stage 1"
EXACT = {
    "tp2 dp2, bf16, several buckets": Part(4, SHARDED),
    "pp2 dp2, interleaved, tied, several buckets": Part(4, f"{INTERLEAVED} {BUCKETS} {ODD_ROWS} {DRAWING}", tied=True),
}
TIED_PP2 = Part(4, f"{PP} 2 {BUCKETS} {ODD_ROWS}", tied=True)
TIED_DP2 = Part(2, f"{BUCKETS} {ODD_ROWS} --overlap-param-gather --ddp-bucket-size 500", tied=True)


def stopped(part: Part) -> list[Part]:
    """A course on one layout with two stops: before and after the end of the first epoch."""
    return [replace(part, until=3), replace(part, until=6), part]


COURSES: dict[str, list[Part]] = {
    "tp2, never stopped": [TP2],
    "tp2, then uneven pp2, then dp4": [Part(2, TP2.flags, 3), replace(UNEVEN_PP2, until=6), DP4],
    "tied pp2 dp2, never stopped": [TIED_PP2],
    "tied pp2 dp2, then dp2": [replace(TIED_PP2, until=6), TIED_DP2],
    **{f"{name}, never stopped": [part] for name, part in EXACT.items()},
    **{f"{name}, stopped": stopped(part) for name, part in EXACT.items()},
}


def digest(value: Any) -> str:
    """Of a tensor's bytes, with type and shape; of anything else, of how it is written."""
    if not isinstance(value, torch.Tensor):
        return repr(value)
    content = value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    return f"{value.dtype} {tuple(value.shape)} {hashlib.sha256(content).hexdigest()}"


def state_of(model_and_optimizer) -> dict[str, str]:
    """Name → digest of all that this rank would go on with: weights, optimizer, schedule, random states."""
    from mindspeed_llm.checkpoints.training_state import get_rng_state

    model_and_optimizer.state.finish_gathering()
    found = {f"random states {number}": digest(part) for number, part in enumerate(get_rng_state().split(500))}
    for number, chunk in enumerate(model_and_optimizer.chunks):
        found |= {f"weight {number} {name}": digest(value) for name, value in chunk.named_parameters()}
    for number, optimizer in enumerate(
        getattr(model_and_optimizer.optimizer, "chained_optimizers", [model_and_optimizer.optimizer])
    ):
        for at, group in enumerate(optimizer.optimizer.param_groups):
            words = {key: value for key, value in group.items() if key != "params"}
            found |= {f"optimizer {number} group {at} {key}": digest(value) for key, value in words.items()}
            for place, parameter in enumerate(group["params"]):
                name = f"optimizer {number} group {at} parameter {place}"
                moments = optimizer.optimizer.state[parameter]
                assert {"exp_avg", "exp_avg_sq"} <= set(moments)
                found[name] = digest(parameter)
                found |= {f"{name} {key}": digest(value) for key, value in moments.items()}
    found |= {f"schedule {key}": digest(value) for key, value in model_and_optimizer.scheduler.state_dict().items()}
    return found


def padded_buckets(model_and_optimizer) -> int:
    """Buckets of this rank that end in padding and have another one after them in their buffer."""
    earlier = [
        bucket for chunk in model_and_optimizer.chunks for buffer in chunk.buffers for bucket in buffer.buckets[:-1]
    ]
    return sum(bucket.grad_data.numel() > bucket.numel_unpadded for bucket in earlier)


def watch(until: int) -> tuple[list, list]:
    """Record the next run of this process and request a stop after an iteration.

    Returns: lists that fill up: of each step its micro-batches' sample ids, and at the run's end its state and its
    number of padded buckets.
    """
    module = importlib.import_module("mindspeed_llm.training.trainer")
    step, train = (getattr(one, "real", one) for one in (module.train_step, module.Trainer.train))
    steps: list = []
    state: list = []

    def watched_step(model_and_optimizer, batches, *rest, **named):
        steps.append([batch.sample_ids for batch in batches])
        result = step(model_and_optimizer, batches, *rest, **named)
        if trainers[0].progress.iteration == until - 2 and os.environ["RANK"] == "0":
            os.kill(os.getpid(), signal.SIGTERM)  # in time for the step before `until` to be over
        return result

    trainers: list = []

    def watched_train(own):
        trainers.append(own)
        complete = train(own)
        state.extend([state_of(own.model_and_optimizer), padded_buckets(own.model_and_optimizer)])
        trainers.clear()  # the model must not outlive the run
        return complete

    watched_step.real, watched_train.real = step, train  # type: ignore[attr-defined]
    module.train_step, module.Trainer.train = watched_step, watched_train  # type: ignore[attr-defined]
    return steps, state


def as_torchrun_does(ranks: int, store: Path) -> None:
    """The environment of a job of `ranks` and its store, for the next run of this process."""
    layout, meeting = (
        importlib.import_module(f"mindspeed_llm.{name}") for name in ("training.process_groups", "devices.rendezvous")
    )
    os.environ |= {"WORLD_SIZE": str(ranks), "LOCAL_RANK": os.environ["RANK"], "TORCHELASTIC_RUN_ID": "test"}
    shared = torch.distributed.FileStore(str(store), ranks)
    layout.launcher_store = meeting.launcher_store = lambda: shared  # type: ignore[attr-defined]
    meeting._meetings = itertools.count()  # type: ignore[attr-defined]


def take_part(part: Part, data: str, save: Path, store: Path) -> dict | None:
    """This rank's share of one part; what it saw, or None if the part has no such rank."""
    import pretrain_gpt
    from mindspeed_llm.training.signals import StoppedError

    if int(os.environ["RANK"]) >= part.ranks:
        return None
    as_torchrun_does(part.ranks, store)
    steps, state = watch(part.until)
    run = RUN.replace("--untie-embeddings-and-output-weights", "") if part.tied else RUN
    sys.argv = ["pretrain_gpt.py", *f"{run} {COMMON} {part.flags} --data-path {data} --save {save}".split()]
    was_stopped = False
    try:
        pretrain_gpt.main()
    except StoppedError:
        was_stopped = True
    assert was_stopped == (part.until < ITERATIONS)
    words = part.flags.split()
    sizes = [int(words[words.index(flag) + 1]) if flag in words else 1 for flag in (TP, PP)]
    # Megatron's order of ranks: tensor parallel, then data parallel, then pipeline stages.
    replicas = part.ranks // (sizes[0] * sizes[1])
    replica = int(os.environ["RANK"]) // sizes[0] % replicas
    return {"replica": replica, "replicas": replicas, "steps": steps, "state": state[0], "padded_buckets": state[1]}


def main(folder: Path) -> None:
    apply_patches("cpu")
    torch.set_num_threads(1)
    results: dict[str, list] = {}
    threads: list[int] = []
    for course, parts in COURSES.items():
        number, began = list(COURSES).index(course), time.perf_counter()
        for at, part in enumerate(parts):
            share = take_part(part, str(folder / "data"), folder / f"course_{number}", folder / f"store_{number}_{at}")
            results.setdefault(course, []).append(share)
            if share is not None:
                threads.append(threads_after_job())
        print(f"{course}: {time.perf_counter() - began:.1f} s", flush=True)
    write_thread_counts(folder, threads)
    (folder / f"results{os.environ['RANK']}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
