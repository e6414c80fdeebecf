"""Every attention kernel against a dense mask in float64."""

from __future__ import annotations

import pytest
import torch
from attention_cases import CASES, output_and_gradients, random_input

from mindspeed_llm.attention import select_kernel
from mindspeed_llm.attention.dense_attention import DenseAttention, dense_mask
from mindspeed_llm.attention.segment_attention import SegmentAttention


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


def test_dense_mask_matches_the_documented_example():
    drawn = ["1     ", "11    ", "111   ", "   1  ", "   11 ", "     1"]
    assert dense_mask((3, 5, 6)).tolist() == [[cell == "1" for cell in row] for row in drawn]


def test_the_reference_is_softmax_attention():
    query, key, value = random_input(5, torch.float64, heads=2, groups=2)
    output = DenseAttention()(query, key, value, (5,), 0.3)
    row, head = 3, 1
    scores = torch.stack([query[row, head] @ key[column, head] * 0.3 for column in range(row + 1)])
    expected = sum(weight * value[column, head] for column, weight in enumerate(scores.softmax(0)))
    assert torch.allclose(output[row, head], expected, atol=1e-14)


def test_kernel_selection_reports_its_reason():
    choice = select_kernel("cpu", torch.float32, 64)
    assert choice.kernel.name == "segments"
    assert "float32 on cpu" in choice.reason


def strided(inputs):
    """The same values as views with gaps, as a projection of query, key and value leaves them."""
    whole = torch.cat([part.detach() for part in inputs], dim=1)
    return [part.requires_grad_() for part in whole.split([part.shape[1] for part in inputs], dim=1)]


@pytest.mark.parametrize("ends", CASES.values(), ids=CASES.keys())
def test_the_kernel_gives_each_segment_what_torch_gives_it_alone(ends):
    """Bit for bit, output and gradients, on views too, and with an upstream gradient that lies the other way round."""
    inputs = strided(random_input(ends[-1], torch.float32, size=16))
    output = SegmentAttention()(*inputs, ends, 0.3)
    upstream = torch.arange(output.numel(), dtype=torch.float32).sin().view(16, 6, -1).permute(2, 1, 0)
    gradients = torch.autograd.grad(output, inputs, upstream)
    for start, end in zip((0, *ends[:-1]), ends, strict=True):
        alone = [part[start:end].detach().transpose(0, 1)[None].contiguous().requires_grad_() for part in inputs]
        own = torch.nn.functional.scaled_dot_product_attention(*alone, is_causal=True, scale=0.3, enable_gqa=True)
        own_upstream = upstream[start:end].transpose(0, 1)[None].contiguous()
        own_gradients = torch.autograd.grad(own, alone, own_upstream)
        for ours, theirs in zip((output, *gradients), (own, *own_gradients), strict=True):
            assert torch.equal(ours[start:end].transpose(0, 1)[None], theirs)
