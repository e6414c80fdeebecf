"""Segment lengths and random inputs for the tests of attention kernels."""

from __future__ import annotations

import torch

CASES = {
    "odd lengths": (3, 10, 11, 24, 37),
    "one segment": (37,),
    "one-token segments": (1, 2, 3, 37),
    "a long one among short ones": (1, 36, 37),
}


def random_input(total: int, dtype: torch.dtype, heads: int = 6, groups: int = 2, size: int = 8) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(total)
    return [
        torch.randn(total, count, size, generator=draw, dtype=torch.float64).to(dtype).requires_grad_()
        for count in (heads, groups, groups)
    ]


def output_and_gradients(kernel, inputs, ends, scale=0.3):
    output = kernel(*inputs, ends, scale)
    draw = torch.Generator().manual_seed(0)
    upstream = torch.randn(output.shape, generator=draw, dtype=torch.float64).to(output.dtype)
    return [output, *torch.autograd.grad(output, inputs, upstream)]
