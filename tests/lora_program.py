"""Run one rank of the LoRA tests: one batch on many layouts, compared with peft in float64.

Started four times by test_lora_layouts.py, with RANK set, a folder, and the name of a group of cases.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hugging_face_models import VOCABULARY, folder_name, make_model
from layouts_program import FULL, OVERLAPS, PP, TP, VIRTUAL, Case, gather_full, global_name, micro_batches, packs_of
from layouts_program import samples_of as samples_of_packs
from lora_courses import Rank, run_base_alone, run_courses
from lora_reference import loss_and_gradients, peft_model
from thread_counts import threads_after_job, write_thread_counts

from mindspeed_llm.arguments.pretrain_parser import parse_pretrain_arguments
from mindspeed_llm.devices import Device, apply_patches
from mindspeed_llm.storage.hashing import sha256_of

ALL, FUSED, QV = "all-linear", "linear_qkv linear_proj linear_fc1 linear_fc2", "q_proj v_proj"
BLOCK = "--recompute-granularity full --recompute-method block --recompute-num-layers 1"
SELECTIVE = "--recompute-granularity selective"
ACTIVATION = "--recompute-activation-function"
SP = "--sequence-parallel"


@dataclass(frozen=True)
class LoraCase(Case):
    """One run.

    Attributes:
        model: name in hugging_face_models.
        targets: --lora-target-modules.
        without: what is switched off, see break_model; empty: nothing.
    """

    model: str = "Qwen2.5"
    targets: str = ALL
    without: str = ""


def case(ranks: int, flags: str, micro: int = 1, accumulation: int = 2, **others: Any) -> LoraCase:
    return LoraCase(ranks, flags, micro, accumulation, "", 2, **others)


LAYOUTS = {
    "tp1": (1, ""),
    "tp2": (2, f"{TP} 2"),
    "tp2, sequence parallel": (2, f"{TP} 2 {SP}"),
    "pp2": (2, f"{PP} 2"),
    "dp2, distributed optimizer, overlaps": (2, OVERLAPS),
    "tp4, fewer groups than ranks": (4, f"{TP} 4"),
}
DP2 = "dp2, distributed optimizer, overlaps"
MORE_LAYOUTS = {
    "interleaved": (2, f"{PP} 2 {VIRTUAL}"),
    "interleaved, dp2, overlaps": (4, f"{PP} 2 {VIRTUAL} {OVERLAPS}"),
    "tp2 pp2, sequence parallel": (4, f"{TP} 2 {PP} 2 {SP}"),
    "tp4, fewer groups than ranks, sequence parallel": (4, f"{TP} 4 {SP}"),
    "tp2 dp2, distributed optimizer": (4, f"{TP} 2 {SP} --use-distributed-optimizer"),
    "uneven stages": (2, f"{PP} 2 --num-layer-list 3,1"),
    "overlapping reduction": (2, "--overlap-grad-reduce"),
    "dense loss, tp2": (2, f"{TP} 2 --loss-chunk-size 0"),
}
RECOMPUTE = {"full": FULL, "block": BLOCK, "selective": SELECTIVE, "activation function": ACTIVATION}
SHORT = {
    # The long suite has all of LAYOUTS.
    **{name: case(*LAYOUTS[name]) for name in ("tp1", "tp2", "tp2, sequence parallel", "pp2", DP2)},
    "fused, tp2, sequence parallel": case(2, f"{TP} 2 {SP}", targets=FUSED),
    "q and v, tp4, fewer groups than ranks": case(4, f"{TP} 4", targets=QV),
    "recompute full, pp2": case(2, f"{PP} 2 {FULL}"),
    **{
        f"without {name}": LoraCase(*_layout, 1, 2, "", 2, without=name)
        for name, _layout in {
            "sequence_parallel": LAYOUTS["tp2, sequence parallel"],
            "tensor_model_parallel": LAYOUTS["tp2"],
            "embedding hook": (1, FULL),
        }.items()
    },
}
FAMILIES = ("Qwen2.5, tied", "Qwen3", "Llama 3.1")
LONG = {
    **{
        f"{model}, {targets}, {name}": case(*layout, model=model, targets=targets)
        for model in ("Qwen2.5", *FAMILIES)
        for targets in (ALL, FUSED, QV)
        for name, layout in {**LAYOUTS, **MORE_LAYOUTS}.items()
    },
    **{
        f"recompute {name}, pp{stages}, {targets}": case(stages, f"{PP} {stages} {flags}", targets=targets)
        for name, flags in RECOMPUTE.items()
        for stages in (1, 2, 4)
        for targets in (ALL, FUSED, "down_proj", "q_proj")
    },
    "recompute full": case(1, FULL),
    "recompute activation function, tp2": case(2, f"{TP} 2 {ACTIVATION}", targets="down_proj"),
    "micro-batch of 3": case(1, "", 3),
    "rslora": case(2, f"{TP} 2 --use-rslora"),
}
GRADIENT_BOUND = 3e-6
KNOWN: dict[tuple, tuple] = {}
GROUPS = {"short": SHORT, "long": LONG}


def arguments_of(one: Case, folder: Path, flags: str = "") -> Any:
    model, targets = (one.model, one.targets) if isinstance(one, LoraCase) else ("Qwen2.5", ALL)
    adapter = "" if flags == "BASE" else f"--lora-r 4 --lora-target-modules {targets}"
    words = (
        f"--load {folder / folder_name(model)} --seq-length 32 --lr 1e-3 --min-lr 1e-3 --weight-decay 0.1 "
        "--data-path none --split 100,0,0 --is-instruction-dataset --neat-pack --reset-position-ids --eval-iters 0 "
        f"--train-iters 2 --no-save-model "
        f"--micro-batch-size {one.micro_batch} --global-batch-size {one.global_batch} --clip-grad 0 "
        f"--loss-chunk-size 7 {adapter} {one.flags} {flags.removeprefix('BASE')}"
    )
    return parse_pretrain_arguments(words.split(), one.ranks)


def break_model(without: str, chunks: list[Any]) -> None:
    """Switch off what a control tests."""
    for chunk in chunks:
        if without == "embedding hook":
            chunk.embedding._forward_hooks.clear()
        for parameter in chunk.parameters():
            if without == "sequence_parallel":
                parameter.sequence_parallel = False
            elif without == "tensor_model_parallel":
                parameter.tensor_model_parallel = False


def trained_parts(chunks: list[Any], values: Callable[[Any], torch.Tensor]) -> dict:
    """name → (this rank's part, dimension it is divided along or None), of every trained parameter."""
    from megatron.core.utils import unwrap_model

    parts = {}
    for wrapped in chunks:
        chunk = unwrap_model(wrapped)
        for name, parameter in chunk.named_parameters():
            if parameter.requires_grad:
                divided = parameter.partition_dim if getattr(parameter, "tensor_model_parallel", False) else None
                parts[global_name(name, chunk)] = (values(parameter).detach().clone(), divided)
    return parts


def set_factors_b(chunks: list[Any]) -> None:
    """Give every B values that depend on its name alone, as after some steps of training."""
    from megatron.core import parallel_state
    from megatron.core.utils import unwrap_model

    rank, ranks = parallel_state.get_tensor_model_parallel_rank(), parallel_state.get_tensor_model_parallel_world_size()
    with torch.no_grad():
        for wrapped in chunks:
            chunk = unwrap_model(wrapped)
            for name, parameter in chunk.named_parameters():
                if ".lora_B." not in name:
                    continue
                divided = getattr(parameter, "tensor_model_parallel", False)
                rows = parameter.shape[0] * (ranks if divided else 1)
                draw = torch.Generator().manual_seed(int(sha256_of(global_name(name, chunk).encode())[:12], 16))
                whole = 0.1 * torch.randn(rows, parameter.shape[1], generator=draw)
                parameter.copy_(whole.chunk(ranks)[rank] if divided else whole)


@contextlib.contextmanager
def started(folder: Path, one: Case, number: int, flags: str = "", b_is_zero: bool = False) -> Iterator[Rank | None]:
    """Build the job of a layout on this rank, with the base and an adapter; None on ranks that it does not have.

    Args:
        flags: further flags; BASE: without an adapter.
        b_is_zero: whether B stays zero, as at the start of a run.
    """
    from tiny_model import derived_of

    from mindspeed_llm.checkpoints import TrainingState, load_weights
    from mindspeed_llm.training.model_and_optimizer import setup_model_and_optimizer
    from mindspeed_llm.training.process_groups import destroy_process_groups, init_process_groups, seed_ranks

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
    part = "all" if arguments.lora.settings is None else "base"
    load_weights(Path(arguments.checkpoint.load), TrainingState(job.chunks, None, part))
    if not b_is_zero:
        set_factors_b(job.chunks)
    job.optimizer.reload_model_params()
    try:
        yield Rank(job, one, arguments)
    finally:
        destroy_process_groups()


def run_case(name: str, one: LoraCase, folder: Path, number: int) -> dict | None:
    """Run one case on this rank; what it gave, on rank 0."""
    from megatron.core import parallel_state
    from megatron.core.utils import unwrap_model
    from tiny_model import derived_of

    from mindspeed_llm.checkpoints import TrainingState, load_weights
    from mindspeed_llm.training.model_and_optimizer import setup_model_and_optimizer
    from mindspeed_llm.training.process_groups import destroy_process_groups, init_process_groups, seed_ranks
    from mindspeed_llm.training.train_step import train_step

    rank = int(os.environ["RANK"])
    if rank >= one.ranks:
        return None
    store = torch.distributed.FileStore(str(folder / f"{number}.store"), one.ranks)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=one.ranks)
    arguments = arguments_of(one, folder)
    init_process_groups(arguments.parallel, arguments.virtual_stages)
    seed_ranks(1234)
    job = setup_model_and_optimizer(arguments, Device("cpu"), derived_of(arguments, 2, VOCABULARY))
    load_weights(Path(arguments.checkpoint.load), TrainingState(job.chunks, None, "base"))
    result: dict = {"initial": gather_full(trained_parts(job.chunks, lambda weight: weight), one.ranks)}
    set_factors_b(job.chunks)
    job.optimizer.reload_model_params()
    result["adapter"] = gather_full(trained_parts(job.chunks, lambda weight: weight), one.ranks)
    base = [p.clone() for chunk in job.chunks for p in chunk.parameters() if not p.requires_grad]
    parts = trained_parts(job.chunks, lambda weight: weight)  # before a control removes the marks
    break_model(one.without, unwrap_model(job.chunks))
    gradients, update = [], job.optimizer.step

    def look_and_update() -> Any:
        gather_reduced(job, arguments)
        own = trained_parts(job.chunks, lambda weight: weight.main_grad)
        marked = {key: (value, parts[key][1]) for key, (value, _) in own.items()}
        gradients.append(gather_full(marked, one.ranks, strict=not one.without))
        return update()

    job.optimizer.step = look_and_update
    losses, norms = [], []
    for step in range(one.steps):
        batches = micro_batches(one, step, parallel_state.get_data_parallel_rank())
        outcome = train_step(job, batches, torch.device("cpu"))
        job.scheduler.step(one.global_batch)
        losses.append(outcome.totals.mean_loss)
        norms.append(outcome.grad_norm)
    job.state.finish_gathering()
    frozen = [(n, p) for chunk in job.chunks for n, p in chunk.named_parameters() if not p.requires_grad]
    changed = [name for (name, own), before in zip(frozen, base, strict=True) if not own.equal(before)]
    result |= {"losses": losses, "norms": norms, "gradients": gradients, "changed": changed}
    result["settings"] = arguments.lora.settings
    result["optimized"] = sum(p.numel() for group in job.optimizer.param_groups for p in group["params"])
    destroy_process_groups()
    return result


def relative(own: torch.Tensor, true: torch.Tensor) -> float:
    return float((own.double() - true).norm() / true.norm())


def peft_step(
    one: LoraCase, settings: Any, adapter: dict[str, torch.Tensor], folder: Path, dtype: torch.dtype
) -> tuple[float, float, dict[str, torch.Tensor]]:
    """What peft gives for the batch of a case; computed once for all cases with the same model, adapter and batch."""
    key = (one.model, settings, one.global_batch, dtype)
    if key not in KNOWN:
        model = peft_model(folder / folder_name(one.model), settings, adapter, dtype)
        samples = samples_of_packs(packs_of(0, one.global_batch))
        KNOWN[key] = loss_and_gradients(model, settings, list(adapter), samples)
    return KNOWN[key]


def gather_reduced(job: Any, arguments: Any) -> None:
    from layouts_program import gather_reduced_gradients

    gather_reduced_gradients(job, arguments)


def compare(one: LoraCase, result: dict, folder: Path) -> dict[str, Any]:
    """What the tests look at, as plain numbers."""
    settings = result["settings"]
    loss, norm, truth = peft_step(one, settings, result["adapter"], folder, torch.float64)
    _, _, single = peft_step(one, settings, result["adapter"], folder, torch.float32)
    own, errors = result["gradients"][0], {}
    for name, true in truth.items():
        # Gradients of keys are small differences: there peft's own float32 differs by as much from its float64.
        limit = max(GRADIENT_BOUND, 3 * relative(single[name], true))
        errors[name] = relative(own[name], true) * GRADIENT_BOUND / limit
    worst = max(errors, key=errors.__getitem__)
    return {
        "loss": abs(result["losses"][0] - loss) / loss,
        "norm": abs(result["norms"][0] - norm) / norm,
        "gradient": errors[worst],
        "worst": worst,
        "zero": [name for name, gradient in result["gradients"][-1].items() if not gradient.any()],
        "changed": result["changed"],
        "trained": sum(value.numel() for value in result["adapter"].values()),
        "digest": sha256_of(b"".join(result["initial"][n].numpy().tobytes() for n in sorted(result["initial"]))),
    }


def main(folder: Path, cases: dict[str, LoraCase]) -> None:
    apply_patches("cpu")
    torch.set_num_threads(1)
    errors: dict[str, dict] = {}
    threads: list[int] = []
    for number, (name, one) in enumerate(cases.items()):
        began = time.perf_counter()
        result = run_case(name, one, folder, number)
        if result is None:
            continue
        threads.append(threads_after_job())
        if os.environ["RANK"] == "0":
            errors[name] = compare(one, result, folder)
            print(name, errors[name], f"{time.perf_counter() - began:.1f} s", flush=True)
    numbers = itertools.count(len(cases))
    errors["courses"] = run_courses(
        folder,
        lambda case, flags: started(folder, case, next(numbers), flags),
        lambda chunks: trained_parts(chunks, lambda weight: weight.float()),
        bf16_steps=30 if cases is SHORT else 200,
    )
    errors["base"] = run_base_alone(
        folder, lambda case, flags: started(folder, case, next(numbers), flags, b_is_zero=True)
    )
    write_thread_counts(folder, threads)
    if os.environ["RANK"] == "0":
        (folder / "results.json").write_text(json.dumps(errors))


if __name__ == "__main__":
    chosen = GROUPS[sys.argv[2]]
    if os.environ["RANK"] == "0":
        for model in {one.model for one in chosen.values()}:
            make_model(model, Path(sys.argv[1]) / folder_name(model))
    main(Path(sys.argv[1]), chosen)
