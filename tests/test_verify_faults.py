"""Faults that are put in on purpose: each ends with status 4, and the output names it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hugging_face_models import make_model
from tiny_runs import write_files
from verify_runs import changed_copy, compare, failed_rows

pytest.importorskip("transformers", reason="needs transformers, which is not installed")

pytestmark = pytest.mark.usefixtures("one_rank")

Tensors = dict[str, torch.Tensor]
FAST = ("--reference-float64", "never")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verify")
    make_model("Qwen2.5", folder / "base")
    make_model("Qwen2.5, tied", folder / "tied")
    write_files(folder / "data")
    return folder


def exchanged(weights: Tensors) -> Tensors:
    gate, up = "model.layers.1.mlp.gate_proj.weight", "model.layers.1.mlp.up_proj.weight"
    return {**weights, gate: weights[up], up: weights[gate]}


def without_biases(weights: Tensors) -> Tensors:
    return {name: value for name, value in weights.items() if not name.endswith("q_proj.bias")}


def without_output(weights: Tensors) -> Tensors:
    return {name: value for name, value in weights.items() if name != "lm_head.weight"}


def with_other_rows(weights: Tensors) -> Tensors:
    return {**weights, "lm_head.weight": weights["lm_head.weight"].flip(0)}


# What differs between the checkpoint and its export: values of config.json, weights, what the output names.
OF_EXPORTS: dict[str, tuple[dict | None, Callable[[Tensors], Tensors] | None, str, str]] = {
    "rope base": (
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
        None,
        "rotary frequencies",
        "usually: rope base: the rotary frequencies differ (base 1e+06 here, 10000 in transformers)",
    ),
    "eps": (
        {"rms_norm_eps": 1e-5},
        None,
        "epsilon of the norms",
        "usually: eps: the norms have another epsilon (layer 1, norm before attention: 1e-06 and 1e-05",
    ),
    "bias": (None, without_biases, "weights that differ", "usually: missing bias: not in the files"),
    "gate and up": (None, exchanged, "weights that differ", "usually: gate and up exchanged: model.layers.1.mlp.gate"),
    "tie": (
        {"tie_word_embeddings": True},
        without_output,
        "weights that differ",
        "usually: tied weights: input embedding",
    ),
    "output rows": (None, with_other_rows, "weights that differ", "usually: weights: other values: lm_head.weight"),
}


@pytest.mark.parametrize("fault", OF_EXPORTS)
def test_a_fault_of_an_export_is_named(folder: Path, tmp_path: Path, fault: str) -> None:
    config, weights, row, line = OF_EXPORTS[fault]
    export = changed_copy(folder / "base", tmp_path / "export", config, weights)
    status, output = compare(folder / "base", folder / "data", "--export", str(export), *FAST)
    assert status == 4
    assert failed_rows(output)[0] == row, output
    assert line in output, output
    assert "logits, each sample alone" in failed_rows(output)
    if fault == "gate and up":
        assert "first difference, each sample alone: layer 2, MLP" in output


def test_an_output_layer_that_was_not_saved_is_named(folder: Path, tmp_path: Path) -> None:
    export = changed_copy(folder / "tied", tmp_path / "export", {"tie_word_embeddings": False})
    status, output = compare(folder / "tied", folder / "data", "--export", str(export), *FAST)
    assert status == 4 and "usually: tied weights: input embedding and output layer are one tensor here" in output
    assert "missing weights: not in the files" in output and "lm_head.weight" in output


def test_a_config_that_ties_other_weights_is_named(folder: Path, tmp_path: Path) -> None:
    """transformers 5 reads both tensors from the files; older versions tie them."""
    export = changed_copy(folder / "base", tmp_path / "export", {"tie_word_embeddings": True})
    status, output = compare(folder / "base", folder / "data", "--export", str(export), *FAST)
    assert status == 4 and failed_rows(output) == ["tied embeddings"]
    assert "usually: tied weights: input embedding and output layer are not one tensor here" in output


def moved_boundary(mask: np.ndarray) -> Any:
    from mindspeed_llm.boundaries import Boundaries, boundaries_from_neat_mask

    right = boundaries_from_neat_mask(mask)
    return Boundaries((right.ends[0] + 1, *right.ends[1:]), right.padding)


def twice_shifted(labels: np.ndarray, ends: Any) -> np.ndarray:
    from mindspeed_llm.boundaries import shift_labels

    return shift_labels(shift_labels(labels, ends), ends)


def test_a_moved_boundary_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mindspeed_llm.data.dataloader.boundaries_from_neat_mask", moved_boundary)
    status, output = compare(folder / "base", folder / "data", *FAST)
    assert status == 4 and "usually: boundaries: a sample gives other logits in its pack than alone" in output, output
    assert "first difference, in packs only: layer 1, attention" in output
    assert "logits, each sample alone" not in failed_rows(output)


def test_shifted_labels_are_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("data.dataloader", "verify.own_recorder"):
        monkeypatch.setattr(f"mindspeed_llm.{place}.shift_labels", twice_shifted)
    status, output = compare(folder / "base", folder / "data", *FAST)
    assert status == 4 and "usually: labels: the logits agree and the losses do not" in output, output
    assert failed_rows(output)[0].startswith("loss") and "no layer differs" in output


def test_labels_that_only_training_shifts_are_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mindspeed_llm.data.dataloader.shift_labels", twice_shifted)
    status, output = compare(folder / "base", folder / "data", *FAST)
    assert status == 4 and "usually: labels of packs" in output, output


def wrong_rope(monkeypatch: pytest.MonkeyPatch) -> None:
    """The frequencies are right, and the positions are not."""
    from mindspeed_llm.model.rotary_embedding import PackedRotaryEmbedding

    right = PackedRotaryEmbedding.forward
    monkeypatch.setattr(PackedRotaryEmbedding, "forward", lambda self, p, *a, **k: right(self, p // 2, *a, **k))


def wrong_epsilon(monkeypatch: pytest.MonkeyPatch) -> None:
    from mindspeed_llm.model.rms_norm import RMSNorm

    def forward(self: Any, hidden: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.rms_norm(hidden, (hidden.shape[-1],), self.weight, 1e-4)

    monkeypatch.setattr(RMSNorm, "forward", forward)


def unused_bias(monkeypatch: pytest.MonkeyPatch) -> None:
    from megatron.core.tensor_parallel import ColumnParallelLinear

    right = ColumnParallelLinear.forward

    def forward(self: Any, *arguments: Any, **others: Any) -> Any:
        output, _ = right(self, *arguments, **others)
        return (output if self.bias is None else output - self.bias), None

    monkeypatch.setattr(ColumnParallelLinear, "forward", forward)


def exchanged_activation(monkeypatch: pytest.MonkeyPatch) -> None:
    from mindspeed_llm.model.fused_ops import SwiGLU

    right = SwiGLU.__call__
    monkeypatch.setattr(SwiGLU, "__call__", lambda self, x: right(self, x.roll(x.shape[-1] // 2, -1)))


def doubled_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    from mindspeed_llm.verify import own_recorder

    right = own_recorder._gradient
    monkeypatch.setattr(own_recorder, "_gradient", lambda p: 2 * right(p) if p.dim() == 1 else right(p))


# Faults of the computation: weights and settings agree.
OF_COMPUTATIONS = {
    wrong_rope: ("layer 1, attention", "rope base: attention agrees at the first token"),
    wrong_epsilon: ("layer 1, norm before attention", "eps: the input of the norm agrees"),
    unused_bias: ("layer 1, attention", "bias: attention differs at the first token already"),
    exchanged_activation: ("layer 1, MLP", "gate and up exchanged, or another activation function"),
    doubled_gradient: ("no layer differs", "the backward pass or the sum over ranks"),
}


@pytest.mark.parametrize("fault", OF_COMPUTATIONS, ids=lambda fault: fault.__name__)
def test_a_fault_of_the_computation_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, fault: Callable[[pytest.MonkeyPatch], None]
) -> None:
    fault(monkeypatch)
    status, output = compare(folder / "base", folder / "data", *FAST)
    place, pattern = OF_COMPUTATIONS[fault]
    assert status == 4 and f"usually: {pattern}" in output, output
    assert place in next(line for line in output.splitlines() if line.startswith(("first difference", "no layer")))
