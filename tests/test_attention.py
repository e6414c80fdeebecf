"""Every attention kernel against a dense mask in float64."""

from __future__ import annotations

import pytest
import torch

from mindspeed_llm.attention import choose_kernel
from mindspeed_llm.attention.contract import segment_lengths
from mindspeed_llm.attention.dense import DenseAttention, dense_mask
from mindspeed_llm.attention.segments import SegmentAttention

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


@pytest.mark.parametrize("ends", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_segments_equal_the_dense_mask(ends, dtype, bound, groups):
    inputs = random_input(ends[-1], dtype, groups=groups)
    exact = [part.detach().double().requires_grad_() for part in inputs]
    for ours, reference in zip(
        output_and_gradients(SegmentAttention(), inputs, ends),
        output_and_gradients(DenseAttention(), exact, ends),
        strict=True,
    ):
        assert ours.shape == reference.shape
        assert (ours.double() - reference).norm() <= bound * reference.norm()


def test_the_mask_of_the_contract():
    drawn = ["1     ", "11    ", "111   ", "   1  ", "   11 ", "     1"]
    assert dense_mask((3, 5, 6)).tolist() == [[cell == "1" for cell in row] for row in drawn]


def test_the_reference_is_softmax_attention():
    query, key, value = random_input(5, torch.float64, heads=2, groups=2)
    output = DenseAttention()(query, key, value, (5,), 0.3)
    row, head = 3, 1
    scores = torch.stack([query[row, head] @ key[column, head] * 0.3 for column in range(row + 1)])
    expected = sum(weight * value[column, head] for column, weight in enumerate(scores.softmax(0)))
    assert torch.allclose(output[row, head], expected, atol=1e-14)


def test_lengths():
    assert segment_lengths((3, 5, 6)) == [3, 2, 1]
    assert segment_lengths((7,)) == [7]


def test_the_choice_says_why():
    choice = choose_kernel("cpu", torch.float32, 64)
    assert choice.kernel.name == "segments"
    assert "float32 on cpu" in choice.reason
