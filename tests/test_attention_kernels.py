"""The accelerators' attention kernels: which is chosen and why, what they are handed, and their numbers on the CPU."""

from __future__ import annotations

import inspect
import sys
import types

import numpy as np
import pytest
import torch
from attention_cases import CASES, output_and_gradients, random_input
from hypothesis import given
from hypothesis import strategies as st

from mindspeed_llm.attention import kernel_selection as table
from mindspeed_llm.attention import select_kernel
from mindspeed_llm.attention.boundary_cache import BoundaryCache
from mindspeed_llm.attention.dense_attention import DenseAttention, dense_mask
from mindspeed_llm.attention.flash_attention import FlashAttention, TorchVarlenAttention, cumulative_lengths
from mindspeed_llm.attention.flex_attention import FlexAttention
from mindspeed_llm.attention.npu_fusion_attention import MOST_SEGMENTS, NpuFusionAttention, split_calls
from mindspeed_llm.errors import DeviceError


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 12))
def test_calls_cover_the_stream_at_segment_ends(lengths, most):
    ends = tuple(np.cumsum(lengths).tolist())
    calls = split_calls(ends, most)
    assert [end - start for call in calls for start, end in zip((0, *call.ends), call.ends, strict=False)] == lengths
    assert all(call.ends[-1] == call.tokens and 1 <= len(call.ends) <= most for call in calls)
    assert len(calls) == -(-len(lengths) // most)


def test_an_ordinary_list_is_one_call():
    assert split_calls(tuple(range(1, MOST_SEGMENTS + 1)))[0].tokens == MOST_SEGMENTS
    assert len(split_calls(tuple(range(1, MOST_SEGMENTS + 2)))) == 2


def test_boundaries_are_prepared_once_for_all_layers():
    made = []
    prepared = BoundaryCache(lambda ends, device: made.append(ends) or len(made))
    first, second, cpu = (3, 5, 6), (2, 6), torch.device("cpu")
    assert [prepared(first, cpu), prepared(second, cpu), prepared(first, cpu)] == [1, 2, 1]
    assert made == [first, second]
    for total in range(200):  # other micro-batches push old ones out
        prepared((total + 1,), cpu)
    assert prepared(first, cpu) == len(made)
    changed = [3, 5]
    prepared(changed, cpu)
    changed[1] = 6
    prepared(changed, cpu)
    assert made[-1] == [3, 6], "a list may have changed"


def test_flash_attention_is_handed_host_integers():
    lengths = cumulative_lengths((3, 5, 6), torch.device("cpu"))
    assert lengths.ends.tolist() == [0, 3, 5, 6] and lengths.ends.dtype == torch.int32
    assert type(lengths.longest) is int and lengths.longest == 3


@pytest.mark.parametrize("ends", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_flex_attention_equals_the_dense_mask(ends, groups):
    """Its forward pass; torch has no backward for it on the CPU."""
    inputs = [part.detach() for part in random_input(ends[-1], torch.float32, groups=groups, size=16)]
    with torch.no_grad():
        ours = FlexAttention()(*inputs, ends, 0.3)
        reference = DenseAttention()(*(part.double() for part in inputs), ends, 0.3)
    assert ours.shape == reference.shape
    assert (ours.double() - reference).norm() <= 1e-6 * reference.norm()


class OperatorCalledError(Exception):
    """Carries what an operator was handed."""


def caught(kernel, inputs, ends):
    with pytest.raises(OperatorCalledError) as call:
        kernel(*inputs, ends, 0.3)
    return call.value.args


def recorder(*arguments, **named):
    raise OperatorCalledError(arguments, named)


def test_what_torch_varlen_is_handed(monkeypatch):
    varlen = pytest.importorskip("torch.nn.attention.varlen")
    known = set(inspect.signature(varlen.varlen_attn).parameters)
    monkeypatch.setattr(varlen, "varlen_attn", recorder)
    arguments, named = caught(TorchVarlenAttention(), random_input(6, torch.bfloat16), (3, 5, 6))
    assert arguments[3].tolist() == arguments[4].tolist() == [0, 3, 5, 6] and arguments[5:] == (3, 3)
    assert named == {"scale": 0.3, "window_size": (-1, 0), "enable_gqa": True}
    assert set(named) <= known, "names of this torch's own function"


def flash_forward(query, key, value, q_ends, k_ends, longest_q, longest_k, dropout, causal, debug_mask, **options):
    """aten::_flash_attention_forward on the CPU, refusing what its kernel for CUDA does not take."""
    total = query.shape[0]
    assert query.dtype == key.dtype == value.dtype and query.dtype in (torch.float16, torch.bfloat16)
    assert q_ends.dtype == k_ends.dtype == torch.int32 and q_ends.is_contiguous() and k_ends.is_contiguous()
    assert q_ends.tolist() == k_ends.tolist() and q_ends[0] == 0 and q_ends[-1] == total
    assert type(longest_q) is type(longest_k) is int and longest_q == longest_k == int(q_ends.diff().max())
    assert (dropout, causal, debug_mask) == (0.0, True, False)
    assert (options["window_size_left"], options["window_size_right"]) == (-1, 0)
    assert all(options.get(name) is None for name in ("seqused_k", "alibi_slopes", "block_table", "num_splits"))
    wide = (part.double() for part in (query, key, value))
    output = DenseAttention()(*wide, q_ends.tolist()[1:], options["scale"]).to(query.dtype)
    of_rows = torch.zeros(query.shape[1], total)
    return output, of_rows, torch.zeros(2, dtype=torch.uint64), torch.empty(0), torch.empty(0)


def flash_backward(upstream, query, key, value, output, of_rows, q_ends, k_ends, *rest, **options):
    """aten::_flash_attention_backward on the CPU."""
    assert upstream.dtype == query.dtype and upstream.stride(-1) == 1 and options["window_size_right"] == 0
    repeats, scale = query.shape[1] // key.shape[1], options["scale"]
    q, up = query.double(), upstream.double()
    k, v = (part.double().repeat_interleave(repeats, dim=1) for part in (key, value))
    scores = torch.einsum("qhd,khd->hqk", q, k) * scale
    weights = scores.masked_fill(~dense_mask(q_ends.tolist()[1:]), float("-inf")).softmax(dim=-1)
    of_weights = torch.einsum("qhd,khd->hqk", up, v)
    of_scores = weights * (of_weights - (weights * of_weights).sum(-1, keepdim=True)) * scale
    of_key, of_value = (
        torch.einsum("hqk,qhd->khd", left, right).unflatten(1, (-1, repeats)).sum(2)
        for left, right in ((of_scores, q), (weights, up))
    )
    return tuple(part.to(query.dtype) for part in (torch.einsum("hqk,khd->qhd", of_scores, k), of_key, of_value))


@pytest.mark.parametrize("ends", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_torch_varlen_over_a_strict_kernel_equals_the_dense_mask(ends, groups):
    """This torch's own front end and autograd formula, as on CUDA; behind them kernels that refuse wrong arguments."""
    pytest.importorskip("torch.nn.attention.varlen")
    inputs = random_input(ends[-1], torch.bfloat16, groups=groups)
    exact = [part.detach().double().requires_grad_() for part in inputs]
    with torch.library._scoped_library("aten", "IMPL") as library:
        library.impl("_flash_attention_forward", flash_forward, "CPU")
        library.impl("_flash_attention_backward", flash_backward, "CPU")
        ours = output_and_gradients(TorchVarlenAttention(), inputs, ends)
    for mine, reference in zip(ours, output_and_gradients(DenseAttention(), exact, ends), strict=True):
        assert mine.shape == reference.shape and mine.dtype == torch.bfloat16
        assert (mine.double() - reference).norm() <= 6e-3 * reference.norm()


def flash_attn_with(*further):
    """A package flash_attn whose function has the parameters that its documentation lists, and records its call."""
    names = ["q", "k", "v", "cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k", "dropout_p"]
    names += ["softmax_scale", "causal", "window_size", "alibi_slopes", *further, "return_attn_probs", "block_table"]
    signature = inspect.Signature([inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names])

    def function(*arguments, **named):
        raise OperatorCalledError(signature.bind_partial(*arguments, **named).arguments)

    function.__signature__ = signature
    package = types.ModuleType("flash_attn")
    package.__spec__ = types.SimpleNamespace(loader=None)
    package.flash_attn_varlen_func = function
    return package


def test_what_flash_attn_is_handed(monkeypatch):
    monkeypatch.setitem(sys.modules, "flash_attn", flash_attn_with("softcap", "deterministic"))
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    (named,) = caught(FlashAttention(), random_input(6, torch.bfloat16), (3, 5, 6))
    assert named["cu_seqlens_q"].tolist() == named["cu_seqlens_k"].tolist() == [0, 3, 5, 6]
    assert named["max_seqlen_q"] == named["max_seqlen_k"] == 3
    assert named["causal"] is True and named["softmax_scale"] == 0.3 and named["deterministic"] is True
    assert named["q"].shape == (6, 6, 8) and named["k"].shape == named["v"].shape == (6, 2, 8)


def test_a_flash_attn_without_deterministic_gradients_is_passed_over(monkeypatch):
    """They came with 2.4.1; before, --deterministic-mode could not be kept."""
    monkeypatch.setitem(sys.modules, "flash_attn", flash_attn_with())
    assert "has no deterministic" in FlashAttention().unsupported("cuda", torch.bfloat16, 64)
    monkeypatch.setitem(sys.modules, "flash_attn", flash_attn_with("deterministic"))
    assert FlashAttention().unsupported("cuda", torch.bfloat16, 64) is None


@pytest.mark.parametrize(
    ("dtype", "size", "name", "reasons"),
    [
        (torch.bfloat16, 128, "torch varlen", []),
        (torch.float32, 128, "flex attention", ["float16 and bfloat16, not torch.float32"]),
        (torch.bfloat16, 512, "flex attention", ["head sizes up to 256"]),
        (torch.float64, 64, "segments", ["flex attention: does not support float64"]),
    ],
)
def test_the_choice_on_cuda(dtype, size, name, reasons):
    pytest.importorskip("torch.nn.attention.varlen")
    choice = select_kernel("cuda", dtype, size)
    assert choice.kernel.name == name
    assert all(reason in choice.reason for reason in reasons)


@pytest.mark.parametrize(("capability", "name"), [((7, 5), "flex attention"), ((8, 0), "torch varlen")])
def test_flash_attention_needs_ampere(monkeypatch, capability, name):
    pytest.importorskip("torch.nn.attention.varlen")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    choice = select_kernel("cuda", torch.float16, 128)
    assert choice.kernel.name == name
    assert ("capability 8.0 or higher, this GPU has 7.5" in choice.reason) == (capability == (7, 5))


def test_an_older_torch_takes_the_next_kernel(monkeypatch):
    from mindspeed_llm.attention import flash_attention

    monkeypatch.setattr(flash_attention, "_torch_lacks", lambda: "torch 2.7 does not have it")
    choice = select_kernel("cuda", torch.bfloat16, 128)
    assert choice.kernel.name == "flex attention"
    assert "torch 2.7 does not have it; flash-attn: flash-attn is not installed" in choice.reason
    monkeypatch.setitem(sys.modules, "flash_attn", flash_attn_with("deterministic"))
    assert select_kernel("cuda", torch.bfloat16, 128).kernel.name == "flash-attn"


def test_no_kernel_is_an_error_that_gives_every_reason(monkeypatch):
    monkeypatch.setitem(table.KERNELS, "npu", (NpuFusionAttention(),))
    with pytest.raises(DeviceError, match="npu_fusion_attention: supports head sizes up to 768, not 1024"):
        select_kernel("npu", torch.bfloat16, 1024)


@pytest.mark.parametrize(
    ("shape", "dtype", "way_out"),
    [
        ((4, 257, 257, 8), torch.bfloat16, "--tensor-model-parallel-size"),
        ((4, 6, 4, 8), torch.bfloat16, "--tensor-model-parallel-size"),
        ((4, 1, 1, 769), torch.bfloat16, "--kv-channels"),
        ((4, 1, 1, 8), torch.float64, "--bf16"),
        ((1024 * 1024 + 1, 1, 1, 1), torch.bfloat16, "--micro-batch-size"),
    ],
)
def test_limits_of_the_npu_kernel_name_the_way_out(shape, dtype, way_out):
    tokens, heads, groups, size = shape
    query = torch.empty(tokens, heads, size, dtype=dtype, device="meta")
    key = torch.empty(tokens, groups, size, dtype=dtype, device="meta")
    with pytest.raises(DeviceError, match=way_out):
        NpuFusionAttention()(query, key, key, (tokens,), 0.3)
