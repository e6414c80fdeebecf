"""One rank of the parity tests: logits of every family on every layout against those of transformers.

Started four times by test_conversion_parity.py with RANK set. Each layout is joined once, by as many of the four as it
needs. Prints the table family × layout × largest error.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from hugging_face_models import LENGTHS, MODELS, PACK, VOCABULARY, folder_name, samples
from thread_counts import threads_after_job, write_thread_counts
from tiny import batch_of, pack

from mindspeed_llm.devices import Device, apply_patches

LAYOUTS = {"TP1 PP1": (1, 1), "TP2 PP1": (2, 1), "TP1 PP2": (1, 2), "TP2 PP2": (2, 2)}
STARTS = ("hf", "mcore", "rank files", "rank files of TP2 PP2")
RUN = (
    "--no-save-model "
    "--micro-batch-size 1 --lr 1e-3 --train-iters 1 --data-path none --split 100,0,0 --is-instruction-dataset "
    f"--neat-pack --reset-position-ids --eval-iters 0 --clip-grad 0 --seq-length {PACK}"
)
STEPS = ("Qwen2.5", "Qwen3, tied", "Llama 3.2, tied", "GPT-2")  # the families whose steps are compared
STEP_LENGTHS = (61, 12, 30, 7)


def arguments_of(source: Path, layout: str, extra: str = ""):
    from mindspeed_llm.arguments.pretrain_parser import parse_pretrain_arguments

    tensor, pipeline = LAYOUTS[layout]
    sizes = f"--tensor-model-parallel-size {tensor} --pipeline-model-parallel-size {pipeline}"
    return parse_pretrain_arguments(f"{RUN} {sizes} --load {source} {extra}".split(), tensor * pipeline)


def boundaries_of(lengths):
    from mindspeed_llm.boundaries import position_ids
    from mindspeed_llm.model import PackedBoundaries

    ends = tuple(sum(lengths[: number + 1]) for number in range(len(lengths)))
    return PackedBoundaries(actual_seq_len=ends, positions=torch.from_numpy(position_ids(ends)))


def logits(chunk, tokens: torch.Tensor, lengths) -> torch.Tensor | None:
    """Logits [T, vocabulary] of one stream, on the ranks of the last stage."""
    from megatron.core import parallel_state

    hidden = chunk.config.hidden_size
    first, last = parallel_state.is_pipeline_first_stage(), parallel_state.is_pipeline_last_stage()
    with torch.no_grad():
        if not first:
            received = torch.empty(len(tokens), 1, hidden)
            torch.distributed.recv(received, parallel_state.get_pipeline_model_parallel_prev_rank())
            chunk.set_input_tensor(received)
        boundaries = boundaries_of(lengths)
        out = chunk(tokens[None], boundaries.positions[None], None, packed_seq_params=boundaries)
        if not last:
            torch.distributed.send(out.contiguous(), parallel_state.get_pipeline_model_parallel_next_rank())
            return None
        parts = [torch.empty_like(out) for _ in range(parallel_state.get_tensor_model_parallel_world_size())]
        torch.distributed.all_gather(parts, out.contiguous(), group=parallel_state.get_tensor_model_parallel_group())
    return torch.cat(parts, dim=-1)[0, :, :VOCABULARY]


def errors_of(chunk, reference: list[torch.Tensor]) -> dict[str, float]:
    """Largest error of the logits: of the samples in one pack, and of the longest and another one alone."""
    ids = samples()
    packed = logits(
        chunk, torch.cat([*ids, torch.zeros(PACK - sum(LENGTHS), dtype=torch.int64)]), [*LENGTHS, PACK - sum(LENGTHS)]
    )
    singles = {number: logits(chunk, ids[number], [LENGTHS[number]]) for number in (0, 2)}
    if packed is None:
        return {}
    own = packed.split([*LENGTHS, PACK - sum(LENGTHS)])
    return {
        "packed": max(float((a - b).abs().max()) for a, b in zip(own, reference, strict=False)),
        "single": max(float((singles[n] - reference[n]).abs().max()) for n in singles),
    }


def load_rank_file(folder: Path, chunk) -> None:
    """Load this rank's file as Megatron does: its model's state dictionary, name by name."""
    from megatron.core import parallel_state

    rank, stage = parallel_state.get_tensor_model_parallel_rank(), parallel_state.get_pipeline_model_parallel_rank()
    stages = parallel_state.get_pipeline_model_parallel_world_size()
    name = f"mp_rank_{rank:02d}" + (f"_{stage:03d}" if stages > 1 else "")
    content = torch.load(folder / "iter_0000001" / name / "model_optim_rng.pt", weights_only=True)
    problems = chunk.load_state_dict(content["model"], strict=False)
    assert not problems.unexpected_keys, problems
    assert all("_extra_state" in key for key in problems.missing_keys), problems


def check_layout(folder: Path, layout: str) -> dict:
    """Errors of every family on one layout, started from the Hugging Face folder and from the converted checkpoint."""
    from tiny_model import build_tiny_model

    from mindspeed_llm.checkpoints import (
        RunCheckpoints,
        RunMetadata,
        TrainingProgress,
        TrainingState,
        begin_save,
        load_weights,
    )
    from mindspeed_llm.checkpoints.import_weights import import_hugging_face
    from mindspeed_llm.conversion import config_of_run
    from mindspeed_llm.training.process_groups import destroy_process_groups, init_process_groups, seed_ranks

    tensor, pipeline = LAYOUTS[layout]
    rank = int(os.environ["RANK"])
    store = torch.distributed.FileStore(str(folder / f"{folder_name(layout)}.store"), tensor * pipeline)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=tensor * pipeline)
    init_process_groups(arguments_of(folder / folder_name(STEPS[0]), layout).parallel)
    results = {}
    for name in MODELS:
        source = folder / folder_name(name)
        reference = torch.load(source / "logits.pt", weights_only=True)
        arguments = arguments_of(source, layout)
        for number, start in enumerate(STARTS):
            seed_ranks(number)
            chunks = build_tiny_model(arguments, vocabulary=None)
            state = TrainingState(list(chunks))
            if start == "hf":
                import_hugging_face(source, state)
            elif start == "rank files":
                load_rank_file(folder / f"{folder_name(name)}_{folder_name(layout)}", chunks[0])
            elif start == "rank files of TP2 PP2":
                other = folder / f"{folder_name(name)}_{folder_name('TP2 PP2')}" / "iter_0000001"
                load_weights(other, state, config_of_run(arguments, None, None))
            else:
                load_weights(RunCheckpoints(folder / f"{folder_name(name)}_mcore").latest(), state)
            results[f"{name} | {layout} | {start}"] = errors_of(chunks[0].eval(), reference)
            if layout == "TP2 PP2" and start == "hf":
                begin_save(
                    RunCheckpoints(folder / f"{folder_name(name)}_saved"),
                    state,
                    RunMetadata(TrainingProgress(3), {}, {}, has_optimizer=False, has_rng=False),
                ).finish()
    for name in STEPS:
        results[f"step | {name} | {layout}"] = sft_step(folder, name, layout)
    destroy_process_groups()
    return results


def sft_step(folder: Path, name: str, layout: str) -> dict:
    """One step over unpacked samples, on every rank; its gradients go into a file for each rank."""
    from megatron.core import parallel_state
    from tiny_model import derived_of

    from mindspeed_llm.checkpoints.import_weights import import_hugging_face
    from mindspeed_llm.training.model_and_optimizer import setup_model_and_optimizer
    from mindspeed_llm.training.train_step import train_step

    extra = f"--global-batch-size {len(STEP_LENGTHS)} --loss-normalization token"
    # With one tensor-parallel rank the stages are uneven.
    extra += {"TP2 PP2": " --sequence-parallel", "TP1 PP2": " --num-layer-list 3,1"}.get(layout, "")
    arguments = arguments_of(folder / folder_name(name), layout, extra)
    job = setup_model_and_optimizer(arguments, Device("cpu"), derived_of(arguments, 1, None))
    import_hugging_face(folder / folder_name(name), job.state)
    outcome = train_step(job, [batch_of([sample]) for sample in step_samples()], torch.device("cpu"))
    chunk = job.state.bare_chunks()[0]
    first = chunk.decoder.layers[0].layer_number - 1
    gradients = {}
    for key, parameter in chunk.named_parameters():
        parts = key.split(".")
        if key.startswith("decoder.layers."):
            parts[2] = str(int(parts[2]) + first)
        gradients[".".join(parts)] = parameter.main_grad.clone()
    rank, stage = parallel_state.get_tensor_model_parallel_rank(), parallel_state.get_pipeline_model_parallel_rank()
    torch.save(gradients, folder / f"gradients_{folder_name(name)}_{folder_name(layout)}_{rank}_{stage}.pt")
    return {"loss": outcome.totals.mean_loss}


def step_samples():
    """Samples of one step, each padded to a row of its own."""
    return [pack([length], seed=length, size=64) for length in STEP_LENGTHS]


def main(folder: Path) -> None:
    apply_patches("cpu")
    torch.set_num_threads(1)
    results: dict = {}
    threads = []
    for layout, (tensor, pipeline) in LAYOUTS.items():
        if int(os.environ["RANK"]) < tensor * pipeline:
            results.update({key: value for key, value in check_layout(folder, layout).items() if value})
            threads.append(threads_after_job())
    write_thread_counts(folder, threads)
    (folder / f"results{os.environ['RANK']}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
