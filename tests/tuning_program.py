"""Run one rank of the tests of prefix, prompt and P-tuning and bottleneck adapters: one batch on many layouts.

Compared with peft, or for bottleneck adapters with a module of its own, in float64, one sample at a time. Started four
times by test_tuning_layouts.py, with RANK set, a folder, and the name of a group of cases.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from hugging_face_models import VOCABULARY, folder_name, make_model
from layouts_program import FULL, OVERLAPS, PP, TP, VIRTUAL, Case, gather_full, gather_reduced_gradients, global_name
from lora_courses import Rank
from lora_program import ACTIVATION, BLOCK, GRADIENT_BOUND, SELECTIVE, SP, break_model, relative, trained_parts
from thread_counts import threads_after_job, write_thread_counts
from tuning_reference import loss_and_gradients, reference_model
from virtual_packs import PACKS, loaded_batches, samples_of_step, slots_of, write_packs

from mindspeed_llm.arguments.pretrain_parser import parse_pretrain_arguments
from mindspeed_llm.devices import Device, apply_patches
from mindspeed_llm.storage.hashing import sha256_of

P = 3
BASE = "BASE"  # in place of flags: without an adapter
# Precisions and optimizers of a pipeline whose second stage has nothing to train.
STAGES = {
    "fp16": (2, "--fp16 --initial-loss-scale 64"),
    "dp2, distributed optimizer": (4, OVERLAPS),
}
METHODS = {
    "prompt": f"--tuning prompt --virtual-tokens {P}",
    "p-tuning": f"--tuning p-tuning --virtual-tokens {P} --prompt-encoder-size 24",
    "prefix": f"--tuning prefix --virtual-tokens {P}",
    "adapter": "--tuning adapter --adapter-size 6",
}


@dataclass(frozen=True)
class TuningCase(Case):
    """One run.

    Attributes:
        method: --tuning.
        model: name in hugging_face_models.
        without: what is switched off, see lora_program.break_model and `broken`; empty: nothing.
    """

    method: str = "prompt"
    model: str = "Qwen2.5"
    without: str = ""


def case(method: str, ranks: int, flags: str, micro: int = 1, **others: Any) -> TuningCase:
    """A case whose global batch has PACKS packs."""
    one = TuningCase(ranks, flags, micro, 1, "", 2, method=method, **others)
    return replace(one, accumulation=PACKS // (one.replicas * micro))


LAYOUTS = {
    "tp1": (1, ""),
    "tp2": (2, f"{TP} 2"),
    "tp2, sequence parallel": (2, f"{TP} 2 {SP}"),
    "pp2": (2, f"{PP} 2"),
    "dp2, distributed optimizer, overlaps": (2, OVERLAPS),
    "tp4, fewer groups than ranks": (4, f"{TP} 4"),
}
MORE_LAYOUTS = {
    "interleaved": (2, f"{PP} 2 {VIRTUAL}"),
    "interleaved, dp2, overlaps": (4, f"{PP} 2 {VIRTUAL} {OVERLAPS}"),
    "tp2 pp2, sequence parallel": (4, f"{TP} 2 {PP} 2 {SP}"),
    "tp4, fewer groups than ranks, sequence parallel": (4, f"{TP} 4 {SP}"),
    "tp2 dp2, distributed optimizer": (4, f"{TP} 2 {SP} --use-distributed-optimizer"),
    "uneven stages": (2, f"{PP} 2 --num-layer-list 3,1"),
    "overlapping reduction": (2, "--overlap-grad-reduce"),
    "dense loss, tp2": (2, f"{TP} 2 --loss-chunk-size 0"),
    "micro-batch of 2": (1, ""),
}
RECOMPUTE = {"full": FULL, "block": BLOCK, "selective": SELECTIVE, "activation function": ACTIVATION}
SHORT = {
    **{
        f"{method}, {name}": case(method, *layout)
        for method in METHODS
        for name, layout in LAYOUTS.items()
        # The long suite has all of them. P-tuning differs from prompt tuning in what computes the virtual tokens only,
        # and query groups matter for a prefix only.
        if name in ("tp2, sequence parallel", "pp2")
        or (name == "tp1" and method != "p-tuning")
        or (name.startswith("dp2") and method == "prompt")
        or (name.startswith("tp4") and method == "prefix")
    },
    "prefix, recompute full, pp2": case("prefix", 2, f"{PP} 2 {FULL}"),
    "prefix, without tensor_model_parallel": case("prefix", *LAYOUTS["tp2"], without="tensor_model_parallel"),
    "prefix, without embedding hook": case("prefix", 1, FULL, without="embedding hook"),
    "prefix, without group sum": case("prefix", *LAYOUTS["tp4, fewer groups than ranks"], without="group sum"),
    **{
        f"prefix, without {what}": case("prefix", 1, "", without=what)
        for what in ("first token rule", "unrotated keys")
    },
    **{
        f"{method}, without sequence_parallel": case(
            method, *LAYOUTS["tp2, sequence parallel"], without="sequence_parallel"
        )
        for method in ("prompt", "adapter")
    },
}
LONG = {
    **{
        f"{model}, {method}, {name}": case(method, *layout, micro=2 if "micro-batch" in name else 1, model=model)
        for model in ("Qwen2.5", "Qwen2.5, tied", "Qwen3", "Llama 3.1")
        for method in METHODS
        for name, layout in {**LAYOUTS, **MORE_LAYOUTS}.items()
    },
    **{
        f"{method}, recompute {name}, pp{stages}": case(method, stages, f"{PP} {stages} {flags}")
        for method in METHODS
        for name, flags in RECOMPUTE.items()
        for stages in (1, 2, 4)
    },
}
GROUPS = {"short": SHORT, "long": LONG}
COURSES = ["p-tuning"]  # in the short suite
KNOWN: dict[tuple, tuple] = {}


def arguments_of(one: TuningCase, folder: Path, flags: str = "") -> Any:
    size = slots_of(0 if one.method == "adapter" else P)
    method = "" if flags == BASE else METHODS[one.method]
    words = (
        f"--load {folder / folder_name(one.model)} --seq-length {size} --lr 1e-3 --min-lr 1e-3 --weight-decay 0.1 "
        "--data-path none --split 100,0,0 --is-instruction-dataset --neat-pack --reset-position-ids --eval-iters 0 "
        f"--train-iters 2 --no-save-model "
        f"--micro-batch-size {one.micro_batch} --global-batch-size {one.global_batch} --clip-grad 0 "
        f"--loss-chunk-size 7 {method} {one.flags} {flags.removeprefix(BASE)}"
    )
    return parse_pretrain_arguments(words.split(), one.ranks)


@contextlib.contextmanager
def broken(without: str) -> Iterator[None]:
    """Break what a control of prefix tuning tests: the model of peft is then another one."""
    from mindspeed_llm.adapters import VirtualTokenSettings
    from mindspeed_llm.tuning import prefix_attention

    kind, rule = prefix_attention.PrefixAttention, VirtualTokenSettings.trains_first_token
    own, region = kind.key_and_value, prefix_attention.copy_to_tensor_model_parallel_region
    if without == "group sum":
        prefix_attention.copy_to_tensor_model_parallel_region = lambda prefix, group: prefix
    elif without == "first token rule":
        VirtualTokenSettings.trains_first_token = property(lambda _: True)
    elif without == "unrotated keys":

        def rotated(self: Any, key: torch.Tensor, value: torch.Tensor, boundaries: Any) -> tuple:
            with_prefix, values = own(self, key, value, boundaries)
            slots = boundaries.virtual_slots.index
            half = with_prefix[slots].chunk(2, dim=-1)
            angle = boundaries.positions[slots].float()[:, None, None, None]
            turned = torch.cat(
                [half[0] * angle.cos() - half[1] * angle.sin(), half[1] * angle.cos() + half[0] * angle.sin()], -1
            )
            return with_prefix.index_copy(0, slots, turned), values

        kind.key_and_value = rotated
    try:
        yield
    finally:
        kind.key_and_value, VirtualTokenSettings.trains_first_token = own, rule
        prefix_attention.copy_to_tensor_model_parallel_region = region


def set_adapter(chunks: list[Any]) -> None:
    """Give every parameter of the adapter values that depend on its name alone, as after some steps of training."""
    from megatron.core import parallel_state
    from megatron.core.utils import unwrap_model

    rank, ranks = parallel_state.get_tensor_model_parallel_rank(), parallel_state.get_tensor_model_parallel_world_size()
    with torch.no_grad():
        for wrapped in chunks:
            chunk = unwrap_model(wrapped)
            for name, parameter in chunk.named_parameters():
                if not parameter.requires_grad:
                    continue
                divided = getattr(parameter, "tensor_model_parallel", False)
                shape = list(parameter.shape)
                if divided:
                    shape[1] *= ranks
                draw = torch.Generator().manual_seed(int(sha256_of(global_name(name, chunk).encode())[:12], 16))
                whole = 0.3 * torch.randn(shape, generator=draw)
                parameter.copy_(whole.chunk(ranks, dim=1)[rank] if divided else whole)


def data_of(one: TuningCase, folder: Path) -> Path:
    return folder / ("plain" if one.method == "adapter" else "virtual")


@contextlib.contextmanager
def started(folder: Path, one: TuningCase, number: int, flags: str = "", is_set: bool = True) -> Iterator[Rank | None]:
    """Build the job of a layout on this rank; None on ranks that it does not have.

    Args:
        flags: further flags.
        is_set: whether the adapter gets the values of `set_adapter`, and not those of the start of a run.
    """
    from tiny_model import derived_of

    from mindspeed_llm.checkpoints import TrainingState, load_weights
    from mindspeed_llm.training.model_and_optimizer import setup_model_and_optimizer
    from mindspeed_llm.training.process_groups import destroy_process_groups, init_process_groups, seed_ranks
    from mindspeed_llm.tuning import initialize_from_vocabulary

    rank = int(os.environ["RANK"])
    if rank >= one.ranks:
        yield None
        return
    store = torch.distributed.FileStore(str(folder / f"{number}.store"), one.ranks)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=one.ranks)
    arguments = arguments_of(one, folder, flags)
    init_process_groups(arguments.parallel, arguments.virtual_stages)
    seed_ranks(1234)
    job = setup_model_and_optimizer(arguments, Device("cpu"), derived_of(arguments, 2, VOCABULARY))
    state = TrainingState(job.chunks, None, "all" if arguments.adapter is None else "base")
    load_weights(Path(arguments.checkpoint.load), state)
    if is_set:
        set_adapter(job.chunks)
    else:
        initialize_from_vocabulary(state.bare_chunks(), 1234, VOCABULARY)
    job.optimizer.reload_model_params()
    try:
        batches = functools.partial(loaded_batches, data_of(one, folder), arguments.adapter)
        yield Rank(job, one, arguments, batches)
    finally:
        destroy_process_groups()


def run_case(one: TuningCase, folder: Path, number: int) -> dict | None:
    """Run one case on this rank; what it gave, on rank 0."""
    from megatron.core import parallel_state
    from megatron.core.utils import unwrap_model

    from mindspeed_llm.training.train_step import train_step

    with started(folder, one, number) as rank:
        if rank is None:
            return None
        job = rank.job
        result: dict = {"adapter": gather_full(trained_parts(job.chunks, lambda weight: weight), one.ranks)}
        base = [p.clone() for chunk in job.chunks for p in chunk.parameters() if not p.requires_grad]
        parts = trained_parts(job.chunks, lambda weight: weight)  # before a control removes the marks
        break_model(one.without, unwrap_model(job.chunks))
        gradients, update = [], job.optimizer.step

        def look_and_update() -> Any:
            gather_reduced_gradients(job, rank.arguments)
            own = trained_parts(job.chunks, lambda weight: weight.main_grad)
            marked = {key: (value, parts[key][1]) for key, (value, _) in own.items()}
            gradients.append(gather_full(marked, one.ranks, strict=not one.without))
            return update()

        job.optimizer.step = look_and_update
        losses, norms = [], []
        for step in range(one.steps):
            batches = rank.batches(one, step, parallel_state.get_data_parallel_rank())
            outcome = train_step(job, batches, torch.device("cpu"))
            losses.append(outcome.totals.mean_loss)
            norms.append(outcome.grad_norm)
        job.state.finish_gathering()
        frozen = [(n, p) for chunk in job.chunks for n, p in chunk.named_parameters() if not p.requires_grad]
        changed = [name for (name, own), before in zip(frozen, base, strict=True) if not own.equal(before)]
        result |= {"losses": losses, "norms": norms, "gradients": gradients, "changed": changed}
        result["settings"] = rank.arguments.adapter
        return result


def reference_step(
    one: TuningCase, settings: Any, adapter: dict[str, torch.Tensor], folder: Path, dtype: torch.dtype
) -> tuple[float, float, dict[str, torch.Tensor]]:
    """What the reference gives for the batch; computed once for all cases with the same model and adapter."""
    key = (one.model, settings, dtype)
    if key not in KNOWN:
        model = reference_model(folder / folder_name(one.model), settings, adapter, dtype)
        KNOWN[key] = loss_and_gradients(model, settings, list(adapter), samples_of_step(0))
    return KNOWN[key]


def compare(one: TuningCase, result: dict, folder: Path) -> dict[str, Any]:
    """What the tests look at, as plain numbers."""
    settings = result["settings"]
    loss, norm, truth = reference_step(one, settings, result["adapter"], folder, torch.float64)
    _, _, single = reference_step(one, settings, result["adapter"], folder, torch.float32)
    own, errors = result["gradients"][0], {}
    for name, true in truth.items():
        # Gradients of keys are small differences: there the reference's own float32 differs as much from its float64.
        limit = max(GRADIENT_BOUND, 3 * relative(single[name], true))
        errors[name] = relative(own[name], true) * GRADIENT_BOUND / limit
    worst = max(errors, key=errors.__getitem__)
    return {
        "loss": abs(result["losses"][0] - loss) / loss,
        "norm": abs(result["norms"][0] - norm) / norm,
        "gradient": errors[worst],
        "plain": max(relative(own[name], true) for name, true in truth.items()),
        "worst": worst,
        "zero": [name for name, gradient in result["gradients"][-1].items() if not gradient.any()],
        "changed": result["changed"],
        "trained": sum(value.numel() for value in result["adapter"].values()),
    }


def run_courses(folder: Path, numbers: Iterator[int], methods: list[str], bf16_steps: int) -> dict[str, Any]:
    """Resume every method on other layouts, and train it in bfloat16 with sequence parallelism."""
    outcome: dict[str, Any] = {}
    for method in methods:
        results: dict[str, Any] = {}

        def course(
            name: str,
            ranks: int,
            flags: str,
            steps: tuple[int, int],
            load: str = "",
            save: str = "",
            method: str = method,
            results: dict = results,
        ) -> None:
            with started(folder, case(method, ranks, flags), next(numbers), is_set=False) as rank:
                if rank is None:
                    return
                if load:
                    rank.load(folder / f"{method} {load}")
                first = gather_full(trained_parts(rank.job.chunks, lambda weight: weight.float()), ranks)
                losses = rank.train(*steps)
                if save:
                    rank.save(folder / f"{method} {save}")
                weights = gather_full(trained_parts(rank.job.chunks, lambda weight: weight.float()), ranks)
                if os.environ["RANK"] == "0":
                    results[name] = {"losses": losses, "weights": weights, "first": first}

        two = f"{TP} 2 {SP}"
        course("whole", 2, two, (0, 6))
        course("tp2", 2, two, (0, 2), save="a")
        course("again", 2, two, (2, 6), load="a")
        course("tp1", 1, "", (2, 4), load="a", save="b")
        course("tp4, start", 4, f"{TP} 4", (0, 0))
        course("tp4", 4, f"{TP} 4", (4, 6), load="b")
        course("pp2", 2, f"{PP} 2", (4, 6), load="b")
        for name, (ranks, flags) in STAGES.items() if method == "p-tuning" else ():
            course(f"{name}, whole", ranks, f"{PP} 2 {flags}", (0, 4))
            course(f"{name}, first", ranks, f"{PP} 2 {flags}", (0, 2), save=name)
            course(f"{name}, second", ranks, f"{PP} 2 {flags}", (2, 4), load=name)
        # gather_full asserts that what is not divided is the same on all tensor-parallel ranks.
        course("bf16", 4, f"{two} --bf16", (0, bf16_steps))
        if results:
            outcome[method] = compared(results)
    with started(folder, case("adapter", 2, f"{TP} 2 {SP}"), next(numbers), BASE, is_set=False) as rank:
        if rank is not None:
            outcome["base alone"] = rank.train(0, 1)[0]
    return outcome


def compared(results: dict[str, Any]) -> dict[str, Any]:
    """What the tests look at, as plain numbers."""

    def differ(one: str, other: str) -> float:
        first, second = results[one]["weights"], results[other]["weights"]
        return max(float((first[name] - second[name]).abs().max()) for name in first)

    digests = {}
    for name in ("tp2", "whole", "tp4, start"):
        first = results[name]["first"]
        digests[name] = sha256_of(b"".join(first[key].numpy().tobytes() for key in sorted(first)))
    return {
        "losses": {name: own["losses"] for name, own in results.items()},
        "resumed weights": max(differ("whole", "tp4"), differ("whole", "pp2")),
        "same layout": differ("whole", "again"),
        "digests": digests,
    }


def main(folder: Path, cases: dict[str, TuningCase], bf16_steps: int) -> None:
    apply_patches("cpu")
    torch.set_num_threads(1)
    errors: dict[str, dict] = {}
    threads: list[int] = []
    numbers = itertools.count()
    for name, one in cases.items():
        began = time.perf_counter()
        with broken(one.without):
            result = run_case(one, folder, next(numbers))
        if result is None:
            continue
        threads.append(threads_after_job())
        if os.environ["RANK"] == "0":
            errors[name] = compare(one, result, folder)
            print(name, errors[name], f"{time.perf_counter() - began:.1f} s", flush=True)
    began = time.perf_counter()
    errors["courses"] = run_courses(folder, numbers, COURSES if cases is SHORT else list(METHODS), bf16_steps)
    print(f"courses {time.perf_counter() - began:.1f} s", flush=True)
    write_thread_counts(folder, threads)
    if os.environ["RANK"] == "0":
        (folder / "results.json").write_text(json.dumps(errors))


if __name__ == "__main__":
    chosen = GROUPS[sys.argv[2]]
    root = Path(sys.argv[1])
    if os.environ["RANK"] == "0":
        for model in {one.model for one in chosen.values()}:
            make_model(model, root / folder_name(model))
        write_packs(root / "plain", 0)
        write_packs(root / "virtual", P)
    main(root, chosen, bf16_steps=6 if sys.argv[2] == "short" else 100)
