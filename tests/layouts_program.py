"""Run one rank of the layout tests: train the same global batches on many layouts from one checkpoint.

Started four times by test_training_layouts.py, with RANK set, a folder to work in, and 'short' or 'long', which names
CASES or LONG_CASES. A layout of two ranks runs on the first two while the others wait at the next start. Importing
torch and megatron-core costs seconds a process, so all layouts share these four. Rank 0 compares every one with the
reference of reference_qwen2.py.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import reference_gpt2
import reference_qwen2 as reference
import torch
from thread_counts import threads_after_job, write_thread_counts
from tiny import GPT2_SHAPE, SHAPE, batch_of, pack, tiny_arguments

from mindspeed_llm.devices import Device, apply_patches

STEPS = 5
GOLDEN_STEPS = 20
# A larger epsilon than the default: where a gradient is rounding alone, 1e-8 would let Adam make a whole step of it.
# Chunks of 7 trained slots, so that every micro-batch has several, and a last one that is shorter.
COMMON = "--lr 1e-4 --min-lr 1e-5 --adam-eps 1e-6 --loss-chunk-size 7"
DENSE = "--loss-chunk-size 0"
TP, PP = "--tensor-model-parallel-size", "--pipeline-model-parallel-size"
SEQUENCE = 32
FULL = "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1"
ACTIVATION = "--recompute-activation-function"
UNEVEN = f"{PP} 2 --num-layer-list 3,1"
OVERLAPS = "--use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather"
VIRTUAL = "--num-layers-per-virtual-pipeline-stage 1"
NORMALIZATION = "--loss-normalization"


@dataclass(frozen=True)
class Case:
    """One run: ranks and flags, and how its global batch is divided.

    Attributes:
        accumulation: micro-batches of one rank in a step; the global batch is micro_batch · accumulation · DP.
        start: which checkpoint it starts from: 'untied', 'tied' or 'gpt2', a model of GPT-2's shape.
        steps: how many.
    """

    ranks: int
    flags: str
    micro_batch: int = 1
    accumulation: int = 4
    start: str = "untied"
    steps: int = STEPS

    @property
    def replicas(self) -> int:
        words = self.flags.split()
        sizes = [int(words[i + 1]) for i, word in enumerate(words) if word in (TP, PP)]
        return self.ranks // int(np.prod(sizes))

    @property
    def global_batch(self) -> int:
        return self.micro_batch * self.accumulation * self.replicas

    @property
    def normalization(self) -> str:
        words = self.flags.split()
        return words[words.index(NORMALIZATION) + 1] if NORMALIZATION in words else "token"


LAYOUTS = {
    "tp1 pp1 dp1": (1, ""),
    "tp2 pp1 dp1": (2, f"{TP} 2"),
    "tp1 pp2 dp1": (2, f"{PP} 2"),
    "tp1 pp1 dp2": (2, ""),
    "tp2 pp2 dp1": (4, f"{TP} 2 {PP} 2"),
    "tp2 pp1 dp2": (4, f"{TP} 2"),
    "tp1 pp2 dp2": (4, f"{PP} 2"),
    "tp1 pp4 dp1": (4, f"{PP} 4"),
}
VARIANTS = {
    "sequence parallel": Case(2, f"{TP} 2 --sequence-parallel"),
    "sequence parallel, micro-batch of 3": Case(2, f"{TP} 2 --sequence-parallel", 3, 1),
    "sequence parallel, pp2": Case(4, f"{TP} 2 {PP} 2 --sequence-parallel"),
    "sequence parallel, pp2, full recompute": Case(4, f"{TP} 2 {PP} 2 --sequence-parallel {FULL}"),
    "interleaved": Case(2, f"{PP} 2 {VIRTUAL}"),
    "interleaved, micro-batch of 3": Case(2, f"{PP} 2 {VIRTUAL}", 3),
    "interleaved, dp2, overlaps": Case(4, f"{PP} 2 {VIRTUAL} {OVERLAPS}"),
    "interleaved, tp2, sequence parallel": Case(4, f"{TP} 2 {PP} 2 {VIRTUAL} --sequence-parallel"),
    "distributed optimizer": Case(2, "--use-distributed-optimizer"),
    "distributed optimizer, overlaps": Case(2, OVERLAPS),
    "distributed optimizer, overlaps, micro-batch of 3": Case(2, OVERLAPS, 3, 1),
    "overlapping reduction alone": Case(2, "--overlap-grad-reduce"),
    "tp2 dp2, sequence parallel, distributed optimizer": Case(
        4, f"{TP} 2 --sequence-parallel --use-distributed-optimizer"
    ),
    "pp2 dp2, distributed optimizer, overlaps": Case(4, f"{PP} 2 {OVERLAPS}"),
    "dp4": Case(4, "", 1, 1),
    "tp4, fewer groups than ranks": Case(4, f"{TP} 4"),
    "full recompute": Case(1, FULL),
    "full recompute, pp2": Case(2, f"{PP} 2 {FULL}", 3, 1),
    "selective recompute": Case(1, "--recompute-activations"),
    "selective recompute, tp2": Case(2, f"{TP} 2 --recompute-activations"),
    "activation recompute, tp2, sequence parallel": Case(2, f"{TP} 2 --sequence-parallel {ACTIVATION}"),
    "activation recompute, uneven stages": Case(2, f"{UNEVEN} {ACTIVATION}"),
    "uneven stages": Case(2, UNEVEN),
    "tied": Case(1, "", start="tied"),
    "tied, pp2": Case(2, f"{PP} 2", start="tied"),
    "tied, tp2 pp2, sequence parallel": Case(4, f"{TP} 2 {PP} 2 --sequence-parallel", start="tied"),
    "tied, pp4": Case(4, f"{PP} 4", start="tied"),
    "tied, uneven stages, tp2": Case(4, f"{TP} 2 {UNEVEN}", start="tied"),
    "padded vocabulary": Case(1, "--make-vocab-size-divisible-by 128"),
    "padded vocabulary, tp4": Case(4, f"{TP} 4 --make-vocab-size-divisible-by 128"),
    "by sample": Case(1, f"{NORMALIZATION} sample", 3),
    "by sample, tp2 dp2, distributed optimizer": Case(
        4, f"{TP} 2 --use-distributed-optimizer {NORMALIZATION} sample", 3, 2
    ),
    "by micro-batch": Case(1, f"{NORMALIZATION} micro-batch", 3),
    "by micro-batch, pp2 dp2": Case(4, f"{PP} 2 {NORMALIZATION} micro-batch", 3, 2),
    "dense loss": Case(1, DENSE),
    "dense loss, tp2": Case(2, f"{TP} 2 {DENSE}"),
    "dense loss, pp2, sequence parallel": Case(4, f"{TP} 2 {PP} 2 --sequence-parallel {DENSE}"),
    "dense loss, tied, pp2": Case(2, f"{PP} 2 {DENSE}", start="tied"),
    "gpt2": Case(1, "", start="gpt2"),
    "gpt2, tp2": Case(2, f"{TP} 2", start="gpt2"),
    "gpt2, tp2, sequence parallel": Case(2, f"{TP} 2 --sequence-parallel", 3, 1, start="gpt2"),
    "gpt2, pp2": Case(2, f"{PP} 2", start="gpt2"),
    "gpt2, dp2, distributed optimizer, overlaps": Case(2, OVERLAPS, start="gpt2"),
    "gpt2, tp2 pp2, sequence parallel, full recompute": Case(
        4, f"{TP} 2 {PP} 2 --sequence-parallel {FULL}", start="gpt2"
    ),
    "rope scaling": Case(1, "--use-rope-scaling --rotary-base 500000"),
    "rope scaling, tp2 pp2": Case(4, f"{TP} 2 {PP} 2 --use-rope-scaling --rotary-base 500000"),
}


def divisions(sizes: Sequence[tuple[int, int]]) -> dict[str, Case]:
    """Every layout with each of (micro-batch size, micro-batches of a rank in a step)."""
    return {
        f"{name}, {micro} × {accumulation}": Case(ranks, flags, micro, accumulation)
        for (name, (ranks, flags)), (micro, accumulation) in itertools.product(LAYOUTS.items(), sizes)
    }


def in_bfloat16(layouts: Sequence[str]) -> dict[str, Case]:
    return {f"bf16, {name}": Case(LAYOUTS[name][0], f"{LAYOUTS[name][1]} --bf16") for name in layouts}


ONE_RANK = next(iter(LAYOUTS))  # what other layouts in bfloat16 are compared with
BF16_LAYOUTS = [ONE_RANK, "tp2 pp1 dp2"]
# A micro-batch of three packs on layouts that divide the model or the batch in two ways. CASES and LONG_CASES together
# have every layout with each of four divisions of the global batch.
THREE_PACKS = {f"{name}, 3 × 1": Case(*LAYOUTS[name], 3, 1) for name in ("tp2 pp2 dp1", "tp1 pp2 dp2")}
# Variants whose code other cases of the short suite run as well.
ONLY_LONG = (
    "interleaved, micro-batch of 3",
    "sequence parallel, pp2",
    "distributed optimizer",
    "distributed optimizer, overlaps, micro-batch of 3",
    "dp4",
    "full recompute, pp2",
    "selective recompute, tp2",
    "uneven stages",
    "tied, pp2",
    "tied, pp4",
    "by sample, tp2 dp2, distributed optimizer",
    "dense loss, tp2",
    "dense loss, tied, pp2",
    "gpt2, tp2",
    "gpt2, pp2",
    "rope scaling",
    "sequence parallel, micro-batch of 3",
    "interleaved",
    "overlapping reduction alone",
    "full recompute",
    "activation recompute, uneven stages",
    "tied, uneven stages, tp2",
    "padded vocabulary",
    "by micro-batch",
    "dense loss",
)
# Run by ci/regression.sh.
LONG_CASES = {
    **{name: VARIANTS[name] for name in ONLY_LONG},
    **{name: case for name, case in divisions([(1, 1), (3, 1), (3, 4)]).items() if name not in THREE_PACKS},
    **in_bfloat16([ONE_RANK, *(name for name in LAYOUTS if name not in BF16_LAYOUTS)]),
    "bf16, pp2 dp2, distributed optimizer, overlaps": Case(4, f"{PP} 2 {OVERLAPS} --bf16"),
}
CASES: dict[str, Case] = {
    **divisions([(1, 4)]),
    **THREE_PACKS,
    **{name: case for name, case in VARIANTS.items() if name not in ONLY_LONG},
    **in_bfloat16(BF16_LAYOUTS),
    **{
        f"bf16, {name}": replace(VARIANTS[name], flags=f"{VARIANTS[name].flags} --bf16")
        for name in ("interleaved, tp2, sequence parallel",)
    },
    "bf16, dense loss": Case(1, f"--bf16 {DENSE}"),
    "golden tp1 pp1 dp1": Case(1, "", 1, 4, steps=GOLDEN_STEPS),
    "golden tp2, sequence parallel": Case(2, f"{TP} 2 --sequence-parallel", 1, 4, steps=GOLDEN_STEPS),
    "golden pp2 dp2, distributed optimizer": Case(4, f"{PP} 2 --use-distributed-optimizer", 1, 2, steps=GOLDEN_STEPS),
}

# Odd lengths, one-token samples, full packs, padding: every global batch has packs with few and with many samples.
LENGTHS = [
    (5, 1, 13, 7), (32,), (11, 20), (3, 3, 3, 3, 3, 3, 3), (31, 1), (16, 16), (9, 2, 8), (25,), (1, 1, 1, 29), (12, 20),
    (7, 7, 7, 7), (6,), (2, 30), (1, 1, 1),  # the last pack has no trained token
]  # fmt: skip


def packs_of(step: int, count: int) -> list:
    return [pack(LENGTHS[(5 * step + i) % len(LENGTHS)], seed=100 * step + i, size=SEQUENCE) for i in range(count)]


def samples_of(packs: list) -> list[reference.Sample]:
    """The samples of packs, one by one."""
    samples = []
    for input_ids, labels, bounds in packs:
        starts = (0, *bounds.ends)
        for start, end in zip(starts, bounds.ends[: bounds.samples], strict=False):
            samples.append((torch.from_numpy(input_ids[start:end]), torch.from_numpy(labels[start:end])))
    return samples


def case_arguments(case: Case):
    lengths = f"--micro-batch-size {case.micro_batch} --global-batch-size {case.global_batch} --train-iters"
    shape = GPT2_SHAPE if case.start == "gpt2" else SHAPE
    arguments = tiny_arguments(f"{COMMON} {lengths} {case.steps} {case.flags}", case.ranks, shape)
    arguments.model.untie_embeddings_and_output_weights = case.start == "untied"
    return arguments


def micro_batches(case: Case, step: int, replica: int) -> list:
    """This replica's micro-batches of a step: micro-batch m of replica r takes packs (m · DP + r) · MBS and on."""
    packs = packs_of(step, case.global_batch)
    starts = range(replica * case.micro_batch, case.global_batch, case.replicas * case.micro_batch)
    return [batch_of(packs[start : start + case.micro_batch], case.normalization) for start in starts]


def global_name(name: str, chunk) -> str:
    """'decoder.layers.0.x' of a pipeline stage's chunk → the layer's number in the whole model."""
    words = name.split(".")
    if words[:2] == ["decoder", "layers"]:
        words[2] = str(chunk.decoder.layers[int(words[2])].layer_number - 1)
    return ".".join(words)


def own_part(chunks, values) -> dict:
    """name → (this rank's part, dimension it is divided along or None), of every parameter of this rank."""
    from megatron.core.utils import unwrap_model

    parts = {}
    for wrapped in chunks:
        chunk = unwrap_model(wrapped)
        for name, parameter in chunk.named_parameters():
            divided = parameter.partition_dim if getattr(parameter, "tensor_model_parallel", False) else None
            parts[global_name(name, chunk)] = (values(parameter).detach().float().clone(), divided)
    return parts


def gather_full(parts: dict, ranks: int, strict: bool = True, gated: bool = True) -> dict[str, torch.Tensor] | None:
    """Every rank's parts put together on rank 0 (replica 0 alone counts). Collective.

    Args:
        strict: whether tensors that are not divided must be equal on all tensor-parallel ranks.
        gated: whether linear_fc1 has a gate.
    """
    from megatron.core import parallel_state

    tensor_rank = parallel_state.get_tensor_model_parallel_rank()
    replica = parallel_state.get_data_parallel_rank()
    gathered: list = [None] * ranks
    torch.distributed.gather_object(
        (replica, tensor_rank, parts), gathered if torch.distributed.get_rank() == 0 else None
    )
    if torch.distributed.get_rank() != 0:
        return None
    found: dict[str, dict] = {}
    for replica, tensor_rank, own in gathered:
        for name, part in own.items() if replica == 0 else ():
            found.setdefault(name, {})[tensor_rank] = part
    joined = {}
    for name, by_rank in found.items():
        dimension = by_rank[0][1]
        pieces = [by_rank[r][0] for r in sorted(by_rank)]
        if dimension is None:
            assert not strict or all(torch.equal(piece, pieces[0]) for piece in pieces), (
                f"{name} differs between tensor ranks"
            )
            joined[name] = pieces[0]
        elif gated and name.endswith("linear_fc1.weight"):  # each rank has its part of the gate, then its part of up
            joined[name] = torch.cat([torch.cat(half) for half in zip(*(p.chunk(2) for p in pieces), strict=True)])
        else:
            joined[name] = torch.cat(pieces, dim=dimension)
    return joined


def gather_reduced_gradients(job, arguments) -> None:
    """With a distributed optimizer each data-parallel rank holds its part of the reduced gradient: gather them."""
    from megatron.core import parallel_state

    if not arguments.parallel.use_distributed_optimizer:
        return
    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    for chunk in job.chunks:
        for buffer in chunk.buffers:
            for bucket in buffer.buckets:
                shards = bucket.grad_data.chunk(group.size())
                parts = [torch.empty_like(shards[0]) for _ in shards]
                torch.distributed.all_gather(parts, shards[group.rank()].clone(), group=group)
                bucket.grad_data.copy_(torch.cat(parts))


def make_start(job, folder) -> None:
    """The checkpoint that all cases of a kind start from: nothing trivial, exact in bfloat16."""
    from mindspeed_llm.checkpoints import RunMetadata, TrainingProgress, begin_save

    draw = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for chunk in job.chunks:
            for key, parameter in chunk.named_parameters():
                if key.endswith(("norm.weight", "bias")):
                    parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw))
                parameter.copy_(parameter.bfloat16())
    record = RunMetadata(TrainingProgress(), {}, {}, has_optimizer=False, has_rng=False)
    begin_save(folder, job.state, record).finish()


def train_case(name: str, case: Case, folder: Path) -> dict | None:
    """Run one case on this rank; what it gave, on rank 0."""
    from megatron.core import parallel_state
    from tiny_model import derived_of

    from mindspeed_llm.checkpoints import RunCheckpoints, load_weights
    from mindspeed_llm.training.model_and_optimizer import setup_model_and_optimizer
    from mindspeed_llm.training.process_groups import destroy_process_groups, init_process_groups, seed_ranks
    from mindspeed_llm.training.train_step import train_step

    rank = int(os.environ["RANK"])
    if rank >= case.ranks:
        return None
    number = [*CASES, *LONG_CASES].index(name)
    store = torch.distributed.FileStore(str(folder / f"{number}.store"), case.ranks)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=case.ranks)
    arguments = case_arguments(case)
    init_process_groups(arguments.parallel, arguments.virtual_stages)
    seed_ranks(1234)
    job = setup_model_and_optimizer(arguments, Device("cpu"), derived_of(arguments, case.steps))
    start = RunCheckpoints(folder / f"start_{case.start}")
    if not start.path.exists():  # the first case of a kind has one rank
        make_start(job, start)
    load_weights(start.latest(), job.state)

    result: dict = {"losses": [], "norms": [], "gradients": []}
    if case.ranks == 1:
        result["start"] = {key: part for key, (part, _) in own_part(job.chunks, lambda weight: weight).items()}
    update = job.optimizer.step

    def look_and_update():
        if len(result["gradients"]) < STEPS:  # golden runs are longer
            gather_reduced_gradients(job, arguments)
            parts = own_part(job.chunks, lambda weight: weight.main_grad)
            result["gradients"].append(gather_full(parts, case.ranks, gated=arguments.model.swiglu))
        return update()

    job.optimizer.step = look_and_update
    replica = parallel_state.get_data_parallel_rank()
    for step in range(case.steps):
        outcome = train_step(job, micro_batches(case, step, replica), torch.device("cpu"))
        job.scheduler.step(case.global_batch)
        result["losses"].append(outcome.totals.mean_loss)
        result["norms"].append(outcome.grad_norm)
    job.state.finish_gathering()
    parts = own_part(job.chunks, lambda weight: weight)
    result["weights"] = gather_full(parts, case.ranks, gated=arguments.model.swiglu)
    destroy_process_groups()
    return result


def errors_of(result: dict, truth: dict) -> dict:
    """What the tests look at, as plain numbers: errors of every step, relative to the reference's values."""
    losses, norms = (
        [abs(own - true) / abs(true) for own, true in zip(result[key], truth[key], strict=True)]
        for key in ("losses", "norms")
    )
    by_step = [gradient_errors(own, true) for own, true in zip(result["gradients"], truth["gradients"], strict=False)]
    weights = {}
    for name, own in result["weights"].items():
        end = of_tensor(truth["weights"], name)
        weights[name] = float((own[: len(end)].double() - end).abs().max())
    return {
        "losses": result["losses"],
        "loss": max(losses),
        "loss_rms": root_mean_square(losses),
        "norm": max(norms),
        "norm_rms": root_mean_square(norms),
        "gradients": by_step,
        "gradient_rms": {name: root_mean_square([step[name] for step in by_step]) for name in by_step[0]},
        "weights": weights,
    }


def root_mean_square(values: list[float]) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def of_tensor(values: dict, name: str) -> torch.Tensor:
    """The reference's value; a tied output layer on a stage of its own has the embedding's."""
    return values.get(name, values["embedding.word_embeddings.weight"])


def gradient_errors(own: dict, truth: dict) -> dict[str, float]:
    """Norm of each gradient's error relative to the gradient's own norm; 'all' is that of all of them together."""
    errors, square_error, square_size = {}, 0.0, 0.0
    for name, gradient in own.items():
        true = of_tensor(truth, name)
        assert not gradient[len(true) :].any(), f"{name}: padding rows of the vocabulary have a gradient"
        error, size = float((gradient[: len(true)].double() - true).norm()), float(true.norm())
        errors[name] = error / size
        square_error, square_size = square_error + error**2, square_size + size**2
    assert set(truth) <= set(own), "gradients of some parameters were not found"
    return {**errors, "all": float(np.sqrt(square_error / square_size))}


def truth_of(case: Case, start: dict, known: dict) -> dict:
    """The reference's run of a case; one for all cases with the same batches and model."""
    scaled = "--use-rope-scaling" in case.flags
    rule = (case.normalization, case.micro_batch if case.normalization == "micro-batch" else None)
    key = (case.start, case.global_batch, case.steps, scaled, rule)
    if key not in known:
        batches = []
        for step in range(case.steps):
            packs = packs_of(step, case.global_batch)
            parts = [packs[at : at + case.micro_batch] for at in range(0, len(packs), case.micro_batch)]
            batches.append(reference.weighted([samples_of(part) for part in parts], case.normalization))
        shape = reference.Shape(rotary_base=5e5, rope_scaling=8.0) if scaled else reference.Shape()
        if case.start == "gpt2":
            shape = reference.Shape(groups=4, epsilon=1e-5, model=reference_gpt2.logits_of)
        known[key] = reference.train(start, batches, shape, reference.Recipe(steps=case.steps))
    return known[key]


def main(folder: Path, cases: Mapping[str, Case]) -> None:
    apply_patches("cpu")
    torch.set_num_threads(1)
    starts: dict[str, dict] = {}
    known: dict = {}
    errors: dict[str, dict] = {}
    threads: list[int] = []
    for name, case in cases.items():
        began = time.perf_counter()
        result = train_case(name, case, folder)
        if result is None:
            continue
        threads.append(threads_after_job())
        if os.environ["RANK"] != "0":
            continue
        print(name, result["losses"], f"{time.perf_counter() - began:.1f} s", flush=True)
        if "start" in result:
            starts.setdefault(case.start, result["start"])
        errors[name] = errors_of(result, truth_of(case, starts[case.start], known))
    write_thread_counts(folder, threads)
    if errors:
        (folder / "results.json").write_text(json.dumps(errors))


if __name__ == "__main__":
    main(Path(sys.argv[1]), {"short": CASES, "long": LONG_CASES}[sys.argv[2]])
