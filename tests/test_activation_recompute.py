"""--recompute-activation-function: the same bits with less memory, in the layers that it is given."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from packed_model import loss_and_gradients
from tiny import batch_of, pack, tiny_arguments

BLOCK = "--recompute-granularity full --recompute-method block"
FUNCTION = "--recompute-activation-function"


def trained(flags: str, swiglu: bool = True, **overrides: Any) -> tuple[float, dict[str, torch.Tensor], list[bool]]:
    """Loss and gradients of two packs, and which layers recompute their activation function."""
    from tiny_model import build_tiny_model

    from mindspeed_llm.model.activation_recompute import ActivationRecomputeMLP

    arguments = tiny_arguments(flags)
    arguments = dataclasses.replace(arguments, model=dataclasses.replace(arguments.model, swiglu=swiglu))
    torch.manual_seed(0)
    [model] = build_tiny_model(arguments, **overrides)
    model = model.to(torch.bfloat16) if arguments.training.bf16 else model
    batches = [batch_of([pack((5, 1, 13, 7), 1)]), batch_of([pack((32,), 2)])]
    loss, gradients = loss_and_gradients(model, batches)
    return loss, gradients, [isinstance(layer.mlp, ActivationRecomputeMLP) for layer in model.decoder.layers]


@pytest.mark.parametrize(
    ("swiglu", "precision"), [(True, ""), (True, "--bf16"), (False, "")], ids=["SwiGLU", "bf16", "GELU"]
)
@pytest.mark.parametrize(
    ("flags", "layers"),
    [
        (FUNCTION, [True] * 4),
        (f"{FUNCTION} {FUNCTION}-num-layers 3", [True, True, True, False]),
        (f"{FUNCTION} --recompute-activations", [True] * 4),
        (f"{BLOCK} --recompute-num-layers 1 {FUNCTION}", [False, True, True, True]),
        (f"{BLOCK} --recompute-num-layers 1 {FUNCTION} {FUNCTION}-num-layers 2", [False, True, True, False]),
        (f"{BLOCK} {FUNCTION} {FUNCTION}-num-layers 2", [True, True, False, False]),
    ],
)
def test_the_same_bits(
    flags: str, layers: list[bool], swiglu: bool, precision: str, caplog: Any, one_rank: None
) -> None:
    expected, gradients, none = trained(precision, swiglu)
    caplog.clear()
    loss, found, recomputed = trained(f"{precision} {flags}", swiglu)
    assert recomputed == layers and none == [False] * 4 and not caplog.records
    assert loss == expected and list(found) == list(gradients)
    assert all(torch.equal(found[name], gradient) for name, gradient in gradients.items())


@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
def test_the_same_bits_with_the_activation_functions_of_megatron_core(fused: bool, bias: bool, one_rank: None) -> None:
    """Those of other devices: three operations, or one function."""
    others = {"use_te_activation_func": False, "bias_activation_fusion": fused, "add_bias_linear": bias}
    expected, gradients, _ = trained("", **others)
    loss, found, _ = trained(FUNCTION, **others)
    assert loss == expected
    assert all(torch.equal(found[name], gradient) for name, gradient in gradients.items())


@pytest.mark.parametrize("device", ["cuda", "npu"])
def test_a_dry_run_plans_less_memory_for_each_device(device: str) -> None:
    from mindspeed_llm.dry_run import ActivationMemory, SavedByOps

    operators = SavedByOps(norm=True, swiglu=device == "cuda")
    kept = ActivationMemory(tiny_arguments("--bf16"), 300, operators)
    freed = ActivationMemory(tiny_arguments(f"--bf16 {FUNCTION} {FUNCTION}-num-layers 3"), 300, operators)
    width = 32 * 96 * 2  # slots · MLP size · bytes
    assert kept.chunk(4) - freed.chunk(4) == 3 * width * (1 if operators.swiglu else 3)
    assert freed.recomputed(4) == freed.activation_function() and kept.recomputed(4) == 0
