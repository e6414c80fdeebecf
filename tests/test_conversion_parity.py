"""Logits and gradients here and in transformers, from the same weights: every family on every layout, in float32."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from four_ranks import run_four_ranks
from hugging_face_models import LLAMA3, MODELS, folder_name, make_model, reference_logits
from parity_program import LAYOUTS, STARTS, STEP_LENGTHS, STEPS, step_samples
from safetensors.torch import load_file
from thread_counts import assert_threads_end

from mindspeed_llm.arguments.convert_arguments import parse_convert_arguments
from mindspeed_llm.arguments.hugging_face_config import read_config
from mindspeed_llm.conversion import TensorCatalogue, convert, latest_checkpoint, to_hugging_face
from mindspeed_llm.conversion.tensor_mapping import split_parts, unshard

pytest.importorskip("transformers", reason="needs transformers, which is not installed")

BOUND = 1e-5


def reference_step(model) -> dict:
    """Loss and gradients of one step in transformers: each sample by itself, every trained token equal."""
    model.zero_grad()
    drawn = [(ids[:n], labels[:n]) for n, (ids, labels, _) in zip(STEP_LENGTHS, step_samples(), strict=True)]
    trained = [int((labels[1:] != -100).sum()) for _, labels in drawn]
    total = 0.0
    for (ids, labels), count in zip(drawn, trained, strict=True):
        mean = model(torch.from_numpy(ids)[None], labels=torch.from_numpy(labels.astype(np.int64))[None]).loss
        (mean * count / sum(trained)).backward()
        total += float(mean.detach()) * count / sum(trained)
    return {"loss": total, "gradients": {name: p.grad.clone() for name, p in model.named_parameters()}}


def gradient_errors(folder: Path, name: str, layout: str) -> dict[str, float]:
    """Relative error of every gradient, put together from the ranks' parts and taken apart as Hugging Face has them."""
    tensor_parallel, stages = LAYOUTS[layout]
    own: dict[str, list[torch.Tensor]] = {}
    for stage in range(stages):
        for rank in range(tensor_parallel):
            path = folder / f"gradients_{folder_name(name)}_{folder_name(layout)}_{rank}_{stage}.pt"
            for key, value in torch.load(path, weights_only=True).items():
                own.setdefault(key, []).append(value)
    theirs = torch.load(folder / folder_name(name) / "step.pt", weights_only=True)["gradients"]
    errors = {}
    for tensor in TensorCatalogue(read_config(folder / folder_name(name))).tensors:
        whole = unshard(tensor, own[tensor.name])
        for (key, _), part in zip(tensor.parts, split_parts(tensor, whole), strict=True):
            errors[key] = float((part - theirs[key]).norm() / theirs[key].norm())
    assert errors.keys() == theirs.keys()
    return errors


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Errors of every family on every layout, and of one step."""
    folder = tmp_path_factory.mktemp("parity")
    for name in MODELS:
        source = folder / folder_name(name)
        model = make_model(name, source)
        torch.save(reference_logits(model), source / "logits.pt")
        if name in STEPS:
            torch.save(reference_step(model), source / "step.pt")
        target = str(folder / folder_name(name))
        convert(parse_convert_arguments(["--load-dir", str(source), "--save-dir", f"{target}_mcore"]))
        for layout, (tensor, pipeline) in LAYOUTS.items():
            sizes = f"--target-tensor-parallel-size {tensor} --target-pipeline-parallel-size {pipeline}".split()
            words = [
                "--load-dir",
                str(source),
                "--save-dir",
                f"{target}_{folder_name(layout)}",
                "--ckpt-format",
                "torch",
            ]
            convert(parse_convert_arguments(words + sizes))
    written = [folder / f"results{rank}.json" for rank in range(4)]
    run_four_ranks("parity_program", folder, written)
    gathered: dict = {}
    for path in written:
        for key, value in json.loads(path.read_text()).items():
            gathered.setdefault(key, value)
    for name in STEPS:
        true = torch.load(folder / folder_name(name) / "step.pt", weights_only=True)["loss"]
        for layout in LAYOUTS:
            step = gathered[f"step | {name} | {layout}"]
            step["loss"] = abs(step["loss"] - true) / true
            step["gradients"] = gradient_errors(folder, name, layout)
    print_table(gathered)
    return {**gathered, "folder": folder}


def print_table(results: dict) -> None:
    """Family × layout × largest error of the logits, over packs and prompts and both ways to start."""
    print(f"\n{'largest error of a logit':24}" + "".join(f"{layout:>12}" for layout in LAYOUTS))
    for name in MODELS:
        cells = [max(max(results[f"{name} | {layout} | {start}"].values()) for start in STARTS) for layout in LAYOUTS]
        print(f"{name:24}" + "".join(f"{cell:12.1e}" for cell in cells))
    print(f"{'worst gradient, relative':24}" + "".join(f"{layout:>12}" for layout in LAYOUTS))
    for name in STEPS:
        cells = [max(results[f"step | {name} | {layout}"]["gradients"].values()) for layout in LAYOUTS]
        print(f"{name:24}" + "".join(f"{cell:12.1e}" for cell in cells))


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_transformers(results, name, layout, start):
    errors = results[f"{name} | {layout} | {start}"]
    assert errors["packed"] <= BOUND and errors["single"] <= BOUND, errors


@pytest.mark.parametrize("name", MODELS)
def test_a_checkpoint_of_four_ranks_is_converted_back_bit_for_bit(results, name):
    source = results["folder"] / folder_name(name)
    saved = latest_checkpoint(results["folder"] / f"{folder_name(name)}_saved")
    out = to_hugging_face(saved, read_config(source), results["folder"] / f"{folder_name(name)}_out")
    own, theirs = load_file(out / "model.safetensors"), load_file(source / "model.safetensors")
    assert own.keys() == theirs.keys()
    assert all(torch.equal(own[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", STEPS)
def test_a_step_is_that_of_transformers(results, name, layout):
    """Loss and every gradient; the norms of query and key, and tied embeddings, are summed over ranks and stages."""
    step = results[f"step | {name} | {layout}"]
    assert step["loss"] <= BOUND
    worst = max(step["gradients"], key=step["gradients"].get)
    assert step["gradients"][worst] <= BOUND, worst


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_rope_scaling_is_the_published_one(factor):
    """Llama 3.1's and 3.2's frequencies at their own sizes: unscaled, interpolated and stretched ones."""
    from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    rope = {**LLAMA3, "factor": factor}
    config = LlamaConfig(hidden_size=4096, num_attention_heads=32, max_position_embeddings=131072, rope_parameters=rope)
    theirs = LlamaRotaryEmbedding(config).inv_freq
    ours = RotaryEmbedding(
        128, 1.0, rotary_base=500000, rope_scaling=True, rope_scaling_factor=factor, use_cpu_initialization=True
    ).inv_freq
    assert float(((ours - theirs) / theirs).abs().max()) < 1e-6
    plain = RotaryEmbedding(128, 1.0, rotary_base=500000, use_cpu_initialization=True).inv_freq
    assert float((plain / ours).max()) == pytest.approx(factor)


def test_process_groups_of_a_finished_layout_are_gone(results):
    assert_threads_end(results["folder"])
