"""Every kernel on the accelerators of this machine, against float64 on the CPU: the first thing to run on new hardware.

Skipped by name where there is no CUDA GPU, no NPU; the CPU stands in for them with the shorter packs, so that the tests
themselves are known to work. docs/ascend.md has what comes after it on a cluster.
"""

from __future__ import annotations

import importlib.util
import sys

import npu_operators
import pytest
import torch
from attention_cases import CASES, output_and_gradients, random_input

from mindspeed_llm.attention import kernel_selection
from mindspeed_llm.attention.dense_attention import DenseAttention

BOUNDS = {torch.float32: 1e-3, torch.float16: 4e-3, torch.bfloat16: 2e-2}
PACKS = {
    **CASES,
    "4,096 tokens, 100 each": tuple(range(96, 4097, 100)),
    "long and short": (1536, *range(1600, 2240, 64), 2304),
    "1,500 segments, more than one call takes": (*range(1, 1500), 2048),
}
SHAPES = {"groups, size 128": (4, 2, 128), "size 64": (2, 1, 64)}


def how_many(kind: str) -> int:
    """Devices of a kind that this process may use."""
    if kind == "cpu":
        return 1
    if kind == "npu" and "torch_npu" not in sys.modules and importlib.util.find_spec("torch_npu") is not None:
        import torch_npu  # noqa: F401
    module = getattr(torch, kind, None)
    return module.device_count() if module is not None else 0


@pytest.fixture(params=["cpu", "cuda", "npu"])
def kind(request):
    if how_many(request.param) == 0:
        pytest.skip(f"needs a device of the kind {request.param}, and there is none here")
    return request.param


def on(kind, parts):
    """Copies on the device that want gradients."""
    return [part.detach().to(kind).requires_grad_() for part in parts]


def compare(name, ours, exact, bound):
    """Relative error in the norm, of each tensor."""
    for number, (mine, reference) in enumerate(zip(ours, exact, strict=True)):
        error = float((mine.detach().cpu().double() - reference.detach()).norm() / reference.detach().norm())
        assert error <= bound, f"{name}, {'output' if number == 0 else f'gradient {number}'}"


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("ends", PACKS.values(), ids=PACKS.keys())
def test_every_kernel_equals_the_dense_mask(kind, ends, shape, dtype):
    heads, groups, size = shape
    taken = [kernel for kernel in kernel_selection.KERNELS[kind] if kernel.unsupported(kind, dtype, size) is None]
    assert taken, "no kernel at all"
    if kind == "cpu" and ends[-1] > 1000:
        pytest.skip("the longer packs are for accelerators")
    inputs = random_input(ends[-1], dtype, heads, groups, size)
    exact = output_and_gradients(DenseAttention(), [part.detach().double().requires_grad_() for part in inputs], ends)
    for kernel in taken:
        there = on(kind, inputs)
        output = kernel(*there, ends, 0.3)
        upstream = torch.randn(output.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        gradients = torch.autograd.grad(output, there, upstream.to(dtype).to(kind))
        compare(kernel.name, [output, *gradients], exact, BOUNDS[dtype])


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
def test_the_fused_operators_of_an_npu(kind, dtype, request):
    """RMSNorm, SwiGLU and rotation as torch_npu computes them, against PyTorch's in float64; on the CPU as the contract
    says that it does."""
    if kind == "cuda":
        pytest.skip("torch_npu's operators")
    if kind == "cpu":
        npu_operators.install()
        request.addfinalizer(npu_operators.remove)
    import torch_npu

    hidden, weight = random_input(256, dtype, 4, 1, 128)[0], random_input(128, dtype, 1, 1, 1)[0]
    angles = torch.rand(256, 1, 1, 128, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    angles = torch.cat((angles[..., :64], angles[..., :64]), dim=-1)
    cosine, sine = (part.to(dtype) for part in (angles.cos(), angles.sin()))

    def rotated(heads, cos, sin):
        first, second = heads.chunk(2, dim=-1)
        return heads * cos + torch.cat((-second, first), dim=-1) * sin

    pairs = {
        "npu_rms_norm": (
            lambda x, w: torch_npu.npu_rms_norm(x, w.reshape(-1), epsilon=1e-6)[0],
            lambda x, w: torch.nn.functional.rms_norm(x, (128,), w.reshape(-1), 1e-6),
            [hidden, weight],
        ),
        "npu_swiglu": (
            lambda x: torch_npu.npu_swiglu(x, dim=-1),
            lambda x: torch.nn.functional.silu(x.chunk(2, dim=-1)[0]) * x.chunk(2, dim=-1)[1],
            [hidden],
        ),
        "npu_rotary_mul": (
            lambda x: torch_npu.npu_rotary_mul(x.unsqueeze(1), cosine.to(kind), sine.to(kind), "half"),
            lambda x: rotated(x.unsqueeze(1), cosine.double(), sine.double()),
            [hidden],
        ),
    }
    for name, (fused, written_out, parts) in pairs.items():
        there, exact = on(kind, parts), [part.detach().double().requires_grad_() for part in parts]
        ours, reference = fused(*there), written_out(*exact)
        upstream = torch.randn(reference.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        upstream = upstream.to(dtype)
        gradients = torch.autograd.grad(ours, there, upstream.to(kind))
        expected = torch.autograd.grad(reference, exact, upstream.double())
        compare(name, [ours, *gradients], [reference, *expected], BOUNDS[dtype])
