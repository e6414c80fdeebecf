"""Every attention kernel against a dense mask in float64."""

from __future__ import annotations

import pytest
import torch
from attention_cases import CASES, output_and_gradients, random_input

from mindspeed_llm.attention import choose_kernel, host
from mindspeed_llm.attention.contract import segment_lengths
from mindspeed_llm.attention.dense import DenseAttention, dense_mask
from mindspeed_llm.attention.host import HostAttention
from mindspeed_llm.attention.segments import SegmentAttention


@pytest.mark.parametrize("ends", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("kernel", [HostAttention(), SegmentAttention()], ids=["host", "segments"])
def test_segments_equal_the_dense_mask(kernel, ends, dtype, bound, groups):
    inputs = random_input(ends[-1], dtype, groups=groups)
    exact = [part.detach().double().requires_grad_() for part in inputs]
    for ours, reference in zip(
        output_and_gradients(kernel, inputs, ends),
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
    assert choice.kernel.name == "flash segments"
    assert "float32 on cpu" in choice.reason


def strided(inputs):
    """The same values as views with gaps, as a projection of query, key and value leaves them."""
    whole = torch.cat([part.detach() for part in inputs], dim=1)
    return [part.requires_grad_() for part in whole.split([part.shape[1] for part in inputs], dim=1)]


@pytest.mark.parametrize("ends", CASES.values(), ids=CASES.keys())
def test_the_host_kernel_gives_each_segment_what_torch_gives_it_alone(ends):
    """Bit for bit, output and gradients, on views too, and with an upstream gradient that lies the other way round."""
    inputs = strided(random_input(ends[-1], torch.float32, size=16))
    output = HostAttention()(*inputs, ends, 0.3)
    upstream = torch.arange(output.numel(), dtype=torch.float32).sin().view(16, 6, -1).permute(2, 1, 0)
    gradients = torch.autograd.grad(output, inputs, upstream)
    assert all(part.is_contiguous() for part in (output, *gradients))
    for start, end in zip((0, *ends[:-1]), ends, strict=True):
        alone = [part[start:end].detach().transpose(0, 1)[None].contiguous().requires_grad_() for part in inputs]
        own = torch.nn.functional.scaled_dot_product_attention(*alone, is_causal=True, scale=0.3, enable_gqa=True)
        own_upstream = upstream[start:end].transpose(0, 1)[None].contiguous()
        own_gradients = torch.autograd.grad(own, alone, own_upstream)
        for ours, theirs in zip((output, *gradients), (own, *own_gradients), strict=True):
            assert torch.equal(ours[start:end].transpose(0, 1)[None], theirs)


def test_the_host_kernel_keeps_its_output_once():
    """For the backward pass: query, key, value, the joined output, and a number for each row of scores."""
    inputs = random_input(37, torch.float32)
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = HostAttention()(*inputs, CASES["odd lengths"], 0.3)
    keep(output)  # whoever reads it keeps it too
    assert sum(kept.values()) == sum(part.untyped_storage().nbytes() for part in (*inputs, output)) + 37 * 6 * 4


def test_an_older_torch_goes_segment_by_segment_through_autograd(monkeypatch):
    """Before torch 2.9 its flash attention on the CPU took no groups: the dispatcher would choose another."""
    monkeypatch.setattr(torch, "_fused_sdp_choice", lambda *_, **__: 0)
    host._torch_lacks.cache_clear()
    try:
        choice = choose_kernel("cpu", torch.float32, 64)
    finally:
        host._torch_lacks.cache_clear()
    assert choice.kernel.name == "segments" and "no flash attention for groups" in choice.reason
