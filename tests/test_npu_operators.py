"""The NPU's kernel and fused operators against their contract, on the CPU.

In the ordinary suite the operators' schemas are defined by npu_operators. ci/npu_contract.sh runs the same tests over
the schemas and Python front end of a real torch_npu wheel.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter

import npu_operators
import pytest
import torch
from attention_cases import CASES, output_and_gradients, random_input
from npu_operators import CALLS, SCHEMAS, ContractError
from packed_model import BOUNDS, PACKS, forward, loss_and_gradients, singles
from tiny import VOCABULARY, batch_of, pack, tiny_arguments
from torch.utils._python_dispatch import TorchDispatchMode

from mindspeed_llm.attention import select_kernel
from mindspeed_llm.attention.dense_attention import DenseAttention
from mindspeed_llm.attention.npu_fusion_attention import NpuFusionAttention

FUSED = "--use-flash-attn --use-fused-rmsnorm --use-fused-swiglu --use-fused-rotary-pos-emb"


@pytest.fixture(scope="module", autouse=True)
def operators(one_rank):
    """CPU kernels behind the operators, after the patches: a real torch_npu redirects names on import too."""
    behind = npu_operators.install()
    wanted = os.environ.get("MINDSPEED_LLM_TORCH_NPU")
    assert wanted is None or behind == wanted, f"wanted torch_npu {wanted}, got {behind}"
    yield behind
    npu_operators.remove()


@pytest.fixture
def kernel():
    choice = select_kernel("npu", torch.bfloat16, 128)
    assert isinstance(choice.kernel, NpuFusionAttention)
    return choice.kernel


def test_schemas_are_those_of_the_wheel():
    """Written down once in npu_operators, compared with whatever is registered."""
    for name, schema in SCHEMAS.items():
        assert str(getattr(torch.ops.npu, name).default._schema) == f"npu::{name}{schema}"


# ---- attention


@pytest.mark.parametrize("ends", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.bfloat16, 6e-3)])
@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("most", [1024, 2])
def test_attention_equals_the_dense_mask(kernel, monkeypatch, ends, dtype, bound, groups, most):
    from mindspeed_llm.attention import npu_fusion_attention
    from mindspeed_llm.attention.boundary_cache import BoundaryCache

    monkeypatch.setattr(kernel, "_calls", BoundaryCache(lambda e, _: npu_fusion_attention.split_calls(e, most)))
    inputs = random_input(ends[-1], dtype, groups=groups)
    exact = [part.detach().double().requires_grad_() for part in inputs]
    CALLS.clear()
    ours = output_and_gradients(kernel, inputs, ends)
    calls = -(-len(ends) // most)
    assert {"npu_fusion_attention": calls, "npu_fusion_attention_grad": calls} == CALLS
    for mine, reference in zip(ours, output_and_gradients(DenseAttention(), exact, ends), strict=True):
        assert mine.shape == reference.shape
        assert (mine.double() - reference).norm() <= bound * reference.norm()


def test_more_segments_than_one_call_takes(kernel):
    """1,500 segments, most of one token: two calls, the same numbers."""
    lengths = [1, 1, 2] * 500
    ends = tuple(torch.tensor(lengths).cumsum(0).tolist())
    inputs = random_input(ends[-1], torch.float32, heads=2, groups=1)
    CALLS.clear()
    ours = output_and_gradients(kernel, inputs, ends)
    assert CALLS["npu_fusion_attention"] == 2
    exact = [part.detach().double().requires_grad_() for part in inputs]
    for mine, reference in zip(ours, output_and_gradients(DenseAttention(), exact, ends), strict=True):
        assert (mine.double() - reference).norm() <= 1e-6 * reference.norm()


def call(**changes):
    """A call of the operator as our kernel makes it, with changes."""
    import torch_npu

    query, key, value = (part.detach() for part in random_input(6, torch.float32))
    arguments = {
        "query": query,
        "key": key,
        "value": value,
        "head_num": 6,
        "input_layout": "TND",
        "atten_mask": torch.ones(2048, 2048, dtype=torch.bool).triu_(1),
        "scale": 0.3,
        "actual_seq_qlen": [3, 5, 6],
        "actual_seq_kvlen": [3, 5, 6],
        "sparse_mode": 2,
    }
    return torch_npu.npu_fusion_attention(**{**arguments, **changes})[0]


BAD_CALLS = {
    "4-D tensors": {"query": torch.zeros(6, 1, 6, 8)},
    "heads of the whole model": {"head_num": 12},
    "heads that are no multiple of groups": {"key": torch.zeros(6, 4, 8), "value": torch.zeros(6, 4, 8)},
    "two types": {"key": torch.zeros(6, 2, 8, dtype=torch.bfloat16)},
    "float64": {name: torch.zeros(6, n, 8).double() for name, n in (("query", 6), ("key", 2), ("value", 2))},
    "a head of 769": {name: torch.zeros(6, n, 769) for name, n in (("query", 6), ("key", 2), ("value", 2))},
    "no lists": {"actual_seq_qlen": None, "actual_seq_kvlen": None},
    "lists of different length": {"actual_seq_kvlen": [3, 6]},
    "a decreasing list": {"actual_seq_qlen": [5, 3, 6], "actual_seq_kvlen": [5, 3, 6]},
    "a list that ends before the stream": {"actual_seq_qlen": [3, 5], "actual_seq_kvlen": [3, 5]},
    "a list that ends beyond the stream": {"actual_seq_qlen": [3, 5, 7], "actual_seq_kvlen": [3, 5, 7]},
    "1,025 segments": {"actual_seq_qlen": [0] * 1024 + [6], "actual_seq_kvlen": [0] * 1024 + [6]},
    "a full mask with mode 2": {"atten_mask": torch.ones(6, 6, dtype=torch.bool).triu_(1)},
    "a mask the wrong way round": {"atten_mask": torch.ones(2048, 2048, dtype=torch.bool).tril_()},
    "a mask of the wrong type": {"atten_mask": torch.ones(2048, 2048).triu_(1)},
    "a 4-D mask": {"atten_mask": torch.ones(1, 1, 2048, 2048, dtype=torch.bool).triu_(1)},
    "prefix mode": {"sparse_mode": 5},
    "a row that is masked whole": {"sparse_mode": 1, "atten_mask": torch.ones(3, 3, dtype=torch.bool)},
    "a compressed mask with mode 0": {"sparse_mode": 0},
    "dropout": {"keep_prob": 0.9},
}


@pytest.mark.parametrize("changes", BAD_CALLS.values(), ids=BAD_CALLS.keys())
def test_the_contract_refuses(changes):
    with pytest.raises(ContractError):
        call(**changes)


def test_the_dispatcher_refuses_boundaries_as_a_tensor():
    """Boundaries are host integers: a tensor would have to be read back from the device."""
    ends = torch.tensor([3, 5, 6])
    with pytest.raises((TypeError, RuntimeError)):
        call(actual_seq_qlen=ends, actual_seq_kvlen=ends)


def test_without_a_mask_the_operator_is_not_causal():
    """Why our kernel always hands the mask over: the operator would compute full attention without a word."""
    assert not torch.allclose(call(), call(atten_mask=None))
    assert torch.allclose(call(atten_mask=None)[3:5], call(atten_mask=None, sparse_mode=0)[3:5])


def test_documented_forms_of_the_list_are_taken():
    """Empty segments, and trailing batches switched off by a closing 0: documented, though we use neither."""
    assert torch.equal(call(actual_seq_qlen=[3, 3, 5, 6], actual_seq_kvlen=[3, 3, 5, 6]), call())
    off = call(actual_seq_qlen=[3, 5, 0], actual_seq_kvlen=[3, 5, 0])
    assert torch.equal(off[:5], call()[:5]) and not off[5:].any()


# ---- the model


@pytest.fixture(scope="module")
def build(one_rank):
    """A bare model for a device; the same weights whatever the device and the operators."""
    from tiny_model import build_tiny_model

    def make(device: str, extra: str = "", dtype: torch.dtype = torch.float32):
        precision = " --bf16" if dtype == torch.bfloat16 else ""
        arguments = tiny_arguments(extra + precision)
        [model] = build_tiny_model(arguments, device, use_cpu_initialization=True)
        draw = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, parameter in sorted(model.named_parameters()):
                noise = torch.randn(parameter.shape, generator=draw)
                parameter.copy_(1 + 0.1 * noise if name.endswith("norm.weight") else 0.08 * noise)
        return model.to(dtype)

    return make


@pytest.mark.parametrize(
    "extra", ["", "--rotary-percent 0.5 --norm-epsilon 1e-2", "--recompute-granularity full --recompute-method uniform"]
)
def test_the_model_equals_that_of_the_cpu(build, extra):
    extra += " --recompute-num-layers 1" if "recompute" in extra else ""
    batch = batch_of([pack(lengths, seed) for seed, lengths in enumerate(PACKS["micro-batch of three"])])
    loss, gradients = loss_and_gradients(build("cpu", extra), [batch])
    CALLS.clear()
    npu_loss, npu_gradients = loss_and_gradients(build("npu", f"{FUSED} {extra}"), [batch])
    assert npu_loss == pytest.approx(loss, rel=BOUNDS[torch.float32])
    for name, gradient in gradients.items():
        assert (npu_gradients[name] - gradient).norm() <= BOUNDS[torch.float32] * gradient.norm() + 1e-9, name
    forwards = 2 if "recompute" in extra else 1  # 4 layers
    assert CALLS["npu_fusion_attention"] == 4 * forwards and CALLS["npu_fusion_attention_grad"] == 4
    assert CALLS["npu_rms_norm"] == 8 * forwards + 1 and CALLS["npu_rms_norm_backward"] == 9
    assert CALLS["npu_rotary_mul"] == 8 * forwards and CALLS["npu_rotary_mul_backward"] == 8
    assert CALLS["npu_swiglu"] == 4 * forwards and CALLS["npu_swiglu_backward"] == 4


def test_packed_equals_one_by_one_over_the_operators(build):
    """The exactness test of the ordinary suite, on an NPU's path."""
    packs = [pack(lengths, seed) for seed, lengths in enumerate(PACKS["micro-batch of three"])]
    model = build("npu", FUSED)
    loss, gradients = loss_and_gradients(model, [batch_of(packs)])
    own_loss, own_gradients = loss_and_gradients(model, [batch for batch, _ in singles(packs)])
    assert loss == pytest.approx(own_loss, rel=BOUNDS[torch.float32])
    for name, gradient in gradients.items():
        error = (gradient - own_gradients[name]).norm()
        assert error <= BOUNDS[torch.float32] * own_gradients[name].norm() + 1e-9, name


def test_the_model_in_bfloat16(build):
    """Every operator is handed one type throughout, or the contract refuses."""
    batch = batch_of([pack((5, 1, 13, 7), seed=0)])
    exact = forward(build("cpu", dtype=torch.float64), batch, labels=False)
    ours = forward(build("npu", FUSED, torch.bfloat16), batch, labels=False)
    assert ours.dtype == torch.bfloat16
    assert (ours.double() - exact).norm() <= 3e-2 * exact.norm()


@pytest.mark.parametrize(
    ("flag", "operator"),
    [
        ("--use-fused-rmsnorm", "npu_rms_norm"),
        ("--use-fused-swiglu", "npu_swiglu"),
        ("--use-fused-rotary-pos-emb", "npu_rotary_mul"),
    ],
)
def test_each_flag_is_one_operator(build, flag, operator):
    batch = batch_of([pack((5, 1, 13, 7), seed=0)])
    CALLS.clear()
    forward(build("npu", flag), batch)
    assert set(CALLS) == {"npu_fusion_attention", operator}
    CALLS.clear()
    forward(build("cpu", flag), batch)
    assert not CALLS


class DispatchedOperators(TorchDispatchMode):
    """Counts what is dispatched and refuses what must wait for a device to tell the host something."""

    WAITING = ("_local_scalar_dense", "item", "is_nonzero", "nonzero", "masked_select", "unique", "_to_cpu", "equal")

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        name = function._overloadpacket.__name__
        assert name not in self.WAITING, f"{name} reads back from the device"
        self.counts[name] += 1
        return function(*arguments, **(named or {}))


def test_the_guard_sees_a_value_read_back():
    with pytest.raises(AssertionError, match="reads back"), DispatchedOperators():
        float(torch.ones(1))


@pytest.mark.parametrize(
    "extra", ["", "--recompute-granularity full --recompute-method block --recompute-num-layers 4"]
)
def test_nothing_is_read_back_and_no_work_grows_with_segments(build, extra):
    """Forward and backward pass of all layers: the same operators, as often, for one segment and for 32."""
    model = build("npu", f"{FUSED} {extra}")
    seen = []
    for lengths in ((32,), (5, 1, 13, 7), (1,) * 32):
        batch = batch_of([pack(lengths, seed=0)])
        forward(model, batch).sum().backward()  # makes tables, masks and gradients
        with DispatchedOperators() as mode:
            forward(model, batch).sum().backward()
        seen.append(mode.counts)
    assert seen[0] == seen[1] == seen[2]
    assert seen[0]["npu_fusion_attention"] == (8 if extra else 4) and seen[0]["npu_fusion_attention_grad"] == 4


@pytest.fixture
def real_wheel(operators):
    """Only where the real torch_npu is loaded."""
    if operators == "stand-in":
        pytest.skip("needs a torch_npu wheel: ci/npu_contract.sh")


# What devices/ and the benchmark ask of torch.npu.
NAMES_OF_TORCH_NPU = (
    "device_count",
    "set_device",
    "synchronize",
    "max_memory_allocated",
    "get_device_name",
    "mem_get_info",
)


def test_the_wheel_has_what_devices_ask_for(real_wheel):
    for name in NAMES_OF_TORCH_NPU:
        assert callable(getattr(torch.npu, name)), name


def in_a_process_of_its_own(program):
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def test_the_patches_of_an_npu_over_the_wheel(real_wheel):
    """torch_npu's own redirection of torch.cuda, megatron-core behind it, and none of its advice on the screen."""
    said, warned = in_a_process_of_its_own("""
from mindspeed_llm.devices import apply_patches
apply_patches("npu")
import os, torch, torch.distributed
from mindspeed_llm.devices.optim import FusedAdam
from megatron.core.optimizer import distrib_optimizer
assert torch.cuda.current_device.__module__.startswith("torch_npu")
assert torch.cuda.synchronize.__module__.startswith("torch_npu")
assert torch.zeros(2).type() == "torch.cuda.FloatTensor"
assert "hccl" in torch.distributed.Backend.backend_type_map
assert os.environ["TORCH_NPU_DEVICE_CAPABILITY"] == "8.0"
assert distrib_optimizer.Adam is FusedAdam
print("in place")
""")
    assert said.endswith("in place\n") and "transfer_to_npu" not in warned


def test_a_machine_without_an_npu_is_said(real_wheel):
    said, _ = in_a_process_of_its_own("""
from mindspeed_llm.devices import select_device
from mindspeed_llm.errors import DeviceError
print(select_device("auto").label)
try:
    select_device("npu")
except DeviceError as error:
    print(error)
""")
    assert said.splitlines()[-2:] == [
        "cpu (gloo)",
        "--device npu: torch_npu sees no NPU; use --device cpu, or check the driver and CANN",
    ]


@pytest.mark.parametrize("precision", ["", "--bf16"])
@pytest.mark.parametrize(
    "extra",
    [
        "",
        "--rotary-percent 0.5",
        "--qk-layernorm",
        "--num-query-groups 1",
        "--recompute-granularity full --recompute-method block --recompute-num-layers 2",
    ],
)
def test_the_plan_counts_what_autograd_keeps_on_an_npu(build, extra, precision):
    """The estimate of --dry-run against what a forward pass over the operators really leaves behind."""
    from saved_tensors import saved_by
    from tiny_model import build_tiny_model

    from mindspeed_llm.dry_run import ActivationMemory, SavedByOps
    from mindspeed_llm.model import select_fused_ops

    shape = "--seq-length 128 --num-layers 3 --hidden-size 128 --ffn-hidden-size 352 --num-attention-heads 8"
    arguments = tiny_arguments(f"{shape} {FUSED} {extra} {precision}")
    [model] = build_tiny_model(arguments, "npu", use_cpu_initialization=True)
    model = model.to(model.config.params_dtype)
    memory = SavedByOps.of(select_fused_ops(arguments.device, arguments.model, "npu"), "npu_fusion_attention")
    estimate = ActivationMemory(arguments, arguments.vocabulary(VOCABULARY).padded, memory)
    expected = estimate.embedding() + estimate.chunk(3) + estimate.head()
    kept = saved_by([model], list(model.parameters()), arguments, torch.device("cpu"))
    assert kept == pytest.approx(expected, rel=0.005)


def test_the_fused_names_of_a_run():
    from mindspeed_llm.model.fused_ops import FusedOps, select_fused_ops

    def chosen(words: str, device: str) -> FusedOps:
        arguments = tiny_arguments(words)
        return select_fused_ops(arguments.device, arguments.model, device)

    adam = "torch._fused_adamw_"
    assert chosen(FUSED, "npu").names == [
        "npu_rms_norm",
        "npu_swiglu",
        "npu_rotary_mul",
        adam,
    ]
    assert chosen(FUSED, "cpu").names == [adam]
    assert chosen(FUSED, "cuda").names == ["megatron-core's bias_swiglu", adam]
    assert chosen("", "cuda").names == [adam]
    assert str(chosen("--use-fused-swiglu", "npu")) == (
        "fused: npu_swiglu, torch._fused_adamw_; not enabled: --use-fused-rmsnorm, --use-fused-rotary-pos-emb"
    )


def test_the_optimizer_has_an_npu_kernel(real_wheel):
    """FusedAdam is torch._fused_adamw_ everywhere; the wheel registers one for its device."""
    assert "PrivateUse1" in torch._C._dispatch_dump("aten::_fused_adamw_")
