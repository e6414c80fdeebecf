"""The CPU's SwiGLU against megatron-core's own, written out: not one bit may differ, and less is kept."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny_arguments


@pytest.fixture(scope="module")
def activation(one_rank):
    from mindspeed_llm.model import select_fused_ops, transformer_config
    from mindspeed_llm.model.fused_ops import SwiGLU

    arguments = tiny_arguments()
    return SwiGLU(transformer_config(arguments, select_fused_ops(arguments.device, arguments.model, "cpu")))


def written_out(gate_and_up: torch.Tensor) -> torch.Tensor:
    """As megatron.core.transformer.mlp.MLP does without a fused activation."""
    gate, up = torch.chunk(gate_and_up, 2, dim=-1)
    return torch.nn.functional.silu(gate) * (up + 0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(7, 1, 10), (513, 1, 2 * 344), (1, 1, 2), (4096, 1, 2 * 96)], ids=str)
def test_the_same_bits_as_written_out(activation, dtype, shape):
    draw = torch.Generator().manual_seed(0)
    gate_and_up = (3 * torch.randn(shape, generator=draw)).to(dtype).requires_grad_()
    upstream = torch.randn((*shape[:-1], shape[-1] // 2), generator=draw).to(dtype)
    results = []
    for function in (activation, written_out):
        output = function(gate_and_up)
        results.append((output, *torch.autograd.grad(output, gate_and_up, upstream)))
    for ours, theirs in zip(*results, strict=True):
        assert ours.dtype == dtype and torch.equal(ours, theirs)


def test_an_upstream_gradient_that_is_not_contiguous(activation):
    gate_and_up = torch.randn(5, 1, 8, requires_grad=True)
    upstream = torch.randn(1, 4, 5).permute(2, 0, 1)
    ours, theirs = (torch.autograd.grad(f(gate_and_up), gate_and_up, upstream)[0] for f in (activation, written_out))
    assert torch.equal(ours, theirs)


def test_gradients_by_differences(activation):
    assert torch.autograd.gradcheck(activation, torch.randn(3, 1, 6, dtype=torch.float64, requires_grad=True))


def test_only_the_input_is_saved_for_backward(activation):
    kept = []
    gate_and_up = torch.randn(5, 1, 8, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        activation(gate_and_up)
    assert [tensor.data_ptr() for tensor in kept] == [gate_and_up.data_ptr()]


def test_the_layers_on_the_cpu_use_this_implementation(one_rank):
    from tiny_model import build_tiny_model

    from mindspeed_llm.model.fused_ops import SwiGLU

    for swiglu in (True, False):
        arguments = tiny_arguments()
        arguments.model.swiglu = swiglu
        [model] = build_tiny_model(arguments)
        assert [isinstance(layer.mlp.activation_func, SwiGLU) for layer in model.decoder.layers] == [swiglu] * 4
