"""torch_npu's fused operators on the CPU, with their documented semantics and every documented constraint enforced.

For machines without an NPU. `install()` registers CPU kernels for the schemas of the operators: the real schemas if a
torch_npu wheel can be imported (ci/npu_contract.sh provides it), otherwise the same schemas in a stub module
torch_npu. A call that the documentation forbids raises `ContractError`; where documents disagree, the stricter one
applies. `CALLS` counts the calls, so that a test can check which code path was used.

Sources: torch_npu's operator documentation (2.13.0), CANN's aclnnFlashAttentionVarLenScore, CANN 9's check of the end
of the boundary lists. These kernels do not model the speed, memory or rounding of an NPU.
"""

from __future__ import annotations

import importlib.util
import itertools
import sys
import types
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch

CALLS: Counter[str] = Counter()
FLOATS = (torch.float16, torch.bfloat16, torch.float32)
UNBOUNDED = 2147483647

SCHEMAS = {
    "npu_fusion_attention": "(Tensor query, Tensor key, Tensor value, int head_num, str input_layout, "
    "Tensor? pse=None, Tensor? padding_mask=None, Tensor? atten_mask=None, float scale=1., float keep_prob=1., "
    "int pre_tockens=2147483647, int next_tockens=2147483647, int inner_precise=0, int[]? prefix=None, "
    "int[]? actual_seq_qlen=None, int[]? actual_seq_kvlen=None, int sparse_mode=0, bool gen_mask_parallel=True, "
    'bool sync=False, str softmax_layout="", Tensor? sink=None, Tensor? dropout_mask=None, int seed=0, '
    "int offset=0) -> (Tensor, Tensor, Tensor, Tensor, int, int, int)",
    "npu_fusion_attention_grad": "(Tensor query, Tensor key, Tensor value, Tensor dy, int head_num, str input_layout, "
    "*, Tensor? pse=None, Tensor? padding_mask=None, Tensor? atten_mask=None, Tensor? softmax_max=None, "
    "Tensor? softmax_sum=None, Tensor? softmax_in=None, Tensor? attention_in=None, float scale_value=1., "
    "float keep_prob=1., int pre_tockens=2147483647, int next_tockens=2147483647, int inner_precise=0, int seed=0, "
    "int offset=0, int numels=0, int[]? prefix=None, int[]? actual_seq_qlen=None, int[]? actual_seq_kvlen=None, "
    'int sparse_mode=0, bool gen_mask_parallel=True, bool sync=False, str softmax_layout="", Tensor? sink=None) '
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    "npu_rms_norm": "(Tensor input, Tensor gamma, float epsilon=9.9999999999999995e-07) -> (Tensor, Tensor)",
    "npu_rms_norm_backward": "(Tensor dy, Tensor input, Tensor gamma, Tensor rstd) -> (Tensor, Tensor)",
    "npu_rotary_mul": '(Tensor input, Tensor r1, Tensor r2, str rotary_mode="half", Tensor? rotate=None) -> Tensor',
    "npu_rotary_mul_backward": '(Tensor grad, Tensor input, Tensor r1, Tensor r2, str rotary_mode="half") '
    "-> (Tensor, Tensor, Tensor)",
    "npu_swiglu": "(Tensor input, int dim=-1) -> Tensor",
    "npu_swiglu_backward": "(Tensor grad_output, Tensor input, int dim=-1) -> Tensor",
}


class ContractError(ValueError):
    """A call that the operator's documents forbid."""


def demand(holds: bool, message: str) -> None:
    """Raise ContractError with `message` unless the condition holds."""
    if not holds:
        raise ContractError(message)


# ---- npu_fusion_attention


def check_attention(query, key, value, head_num, layout, options: dict[str, Any]) -> None:
    """Check all documented constraints on a call with packed sequences."""
    demand(layout == "TND", f"only TND is built here, not {layout}")
    demand(query.dim() == key.dim() == value.dim() == 3, "TND takes 3-D tensors")
    demand(query.dtype == key.dtype == value.dtype and query.dtype in FLOATS, "q, k, v: one of fp16, bf16, fp32")
    demand(query.shape[1] == head_num, "head_num is the number of query heads of this card")
    demand(key.shape[:2] == value.shape[:2], "key and value have the same tokens and heads")
    demand(key.shape[1] > 0 and head_num % key.shape[1] == 0, "Nq / Nkv is a whole number")
    demand(1 <= head_num <= 256, "Nq is 1 to 256")
    demand(query.shape[2] == key.shape[2] >= value.shape[2] and 1 <= query.shape[2] <= 768, "Dq = Dk >= Dv, 1 to 768")
    demand(1 <= query.shape[0] <= 1024 * 1024 and key.shape[0] <= 1024 * 1024, "T is 1 to 1M")
    demand(options["pse"] is None and options["padding_mask"] is None and options["sink"] is None, "not built here")
    demand(options["keep_prob"] == 1.0, "dropout draws from the NPU's own stream; not built here")
    demand(options["softmax_layout"] in ("", "TND"), "softmax_layout is TND or nothing")
    demand(options["prefix"] is None, "prefix masks are not built here")
    check_lists(options["actual_seq_qlen"], options["actual_seq_kvlen"], query.shape[0], key.shape[0])
    check_mask(options)


def check_lists(q_ends: Sequence[int] | None, kv_ends: Sequence[int] | None, tokens: int, kv_tokens: int) -> None:
    """Check the two boundary lists."""
    demand(q_ends is not None and kv_ends is not None, "TND needs actual_seq_qlen and actual_seq_kvlen")
    assert q_ends is not None and kv_ends is not None
    demand(len(q_ends) == len(kv_ends), "actual_seq_qlen and actual_seq_kvlen have the same length")
    demand(1 <= len(q_ends) <= 1024, "a packed stream has 1 to 1K batches")
    for ends, total in ((q_ends, tokens), (kv_ends, kv_tokens)):
        used = list(ends)
        while used and used[-1] == 0:
            used.pop()  # trailing zeros switch batches off
        demand(bool(used) and used[0] >= 0, "no batch at all")
        demand(all(a <= b for a, b in itertools.pairwise(used)), "cumulative ends do not decrease")
        demand(used[-1] <= total, "the last end lies beyond T")
        demand(used[-1] == total or ends[-1] == 0, "161001: the end of actualSeqQLen & actualSeqKvLen should be 0")


def check_mask(options: dict[str, Any]) -> None:
    """Check the combination of sparse_mode and atten_mask."""
    mode, mask = options["sparse_mode"], options["atten_mask"]
    demand(mode in (0, 1, 2, 3, 4, 7, 8), f"sparse_mode {mode} is not for packed streams, or not built here")
    if mask is None:
        return  # documented: full attention, whatever sparse_mode says
    demand(mask.dtype in (torch.bool, torch.uint8), "atten_mask is bool or uint8")
    demand(mask.dim() == 2, "with packed streams atten_mask has the shape SS")
    if mode in (2, 3, 4, 7, 8):
        demand(mask.shape == (2048, 2048), f"sparse_mode {mode} takes the compressed 2048 x 2048 mask")
        triangle = torch.ones(2048, 2048, dtype=torch.bool, device=mask.device).triu_(1)
        demand(torch.equal(mask.bool(), triangle), "the compressed mask is True above the diagonal and there alone")
    else:
        longest = tuple(
            max(end - start for start, end in batches_of(options[name]))
            for name in ("actual_seq_qlen", "actual_seq_kvlen")
        )
        demand(tuple(mask.shape) == longest, "without compression atten_mask is maxSq x maxSkv")
        demand(not mask.bool().all(dim=1).any(), "a row of atten_mask masks everything")


def batches_of(ends: Sequence[int]) -> list[tuple[int, int]]:
    """Return (start, end) of every batch that is not empty."""
    used = list(ends)
    while used[-1] == 0:
        used.pop()
    return list(zip([0, *used[:-1]], used, strict=True))


def attended(options: dict[str, Any], rows: int, columns: int, batch: int, batches: int) -> torch.Tensor:
    """[rows, columns] bool of one batch: True where query row attends to key column."""
    mode, mask = options["sparse_mode"], options["atten_mask"]
    row, column = torch.arange(rows)[:, None], torch.arange(columns)[None, :]
    if mask is None:
        return torch.ones(rows, columns, dtype=torch.bool)
    if mode in (0, 1):
        return ~mask[:rows, :columns].bool()
    from_right = column - (columns - rows)  # anchored at the lower right
    band = (from_right >= row - options["pre_tockens"]) & (from_right <= row + options["next_tockens"])
    if mode == 4 or (mode == 7 and batch == batches - 1) or (mode == 8 and batch == 0):
        return band
    if mode in (2, 8):
        return column <= row
    demand(rows <= columns, "sparse_mode 3 needs Sq <= Skv in every batch")
    return from_right <= row


def scores_of(query, key, keep, scale):
    """[N, rows, columns] float32, -inf where masked; keys of a group are shared by its heads."""
    repeats = query.shape[1] // key.shape[1]
    key = key.float().repeat_interleave(repeats, dim=1)
    return (torch.einsum("qnd,knd->nqk", query.float(), key) * scale).masked_fill(~keep, float("-inf"))


def attention(query, key, value, head_num, input_layout, **options):
    """Forward on the CPU: (output, softmax_max, softmax_sum, nothing, 0, 0, 0)."""
    CALLS["npu_fusion_attention"] += 1
    check_attention(query, key, value, head_num, input_layout, options)
    output = torch.zeros(*query.shape[:2], value.shape[2], dtype=query.dtype)
    largest, total = (torch.zeros(query.shape[0], head_num, 8) for _ in range(2))
    q_parts, kv_parts = batches_of(options["actual_seq_qlen"]), batches_of(options["actual_seq_kvlen"])
    repeats = head_num // key.shape[1]
    for number, ((start, end), (kv_start, kv_end)) in enumerate(zip(q_parts, kv_parts, strict=True)):
        if start == end:
            continue
        keep = attended(options, end - start, kv_end - kv_start, number, len(q_parts))
        scores = scores_of(query[start:end], key[kv_start:kv_end], keep, options["scale"])
        most = scores.amax(-1, keepdim=True)
        weights = (scores - most).exp()
        sums = weights.sum(-1, keepdim=True)
        values = value[kv_start:kv_end].float().repeat_interleave(repeats, dim=1)
        output[start:end] = torch.einsum("nqk,knd->qnd", weights / sums, values).to(query.dtype)
        largest[start:end] = most.transpose(0, 1)
        total[start:end] = sums.transpose(0, 1)
    return output, largest, total, query.new_empty(0), 0, 0, 0


def attention_grad(query, key, value, dy, head_num, input_layout, *, scale_value, **options):
    """Backward on the CPU, from the saved maxima and sums as the fused kernel does it."""
    CALLS["npu_fusion_attention_grad"] += 1
    check_attention(query, key, value, head_num, input_layout, options)
    demand(dy.dtype == query.dtype, "dy has the type of the query")
    dq, dk, dv = (torch.zeros(part.shape) for part in (query, key, value))
    groups, repeats = key.shape[1], head_num // key.shape[1]
    q_parts, kv_parts = batches_of(options["actual_seq_qlen"]), batches_of(options["actual_seq_kvlen"])
    for number, ((start, end), (kv_start, kv_end)) in enumerate(zip(q_parts, kv_parts, strict=True)):
        if start == end:
            continue
        rows, columns = slice(start, end), slice(kv_start, kv_end)
        keep = attended(options, end - start, kv_end - kv_start, number, len(q_parts))
        scores = scores_of(query[rows], key[columns], keep, scale_value)
        most, sums = (options[name][rows, :, :1].transpose(0, 1) for name in ("softmax_max", "softmax_sum"))
        weights = (scores - most).exp() / sums
        upstream = dy[rows].float()
        keys, values = (part[columns].float().repeat_interleave(repeats, dim=1) for part in (key, value))
        inner = torch.einsum("qnd,knd->nqk", upstream, values)
        d_scores = weights * (inner - (upstream * options["attention_in"][rows].float()).sum(-1).T[:, :, None])
        dq[rows] = torch.einsum("nqk,knd->qnd", d_scores, keys) * scale_value
        for into, gradient in (
            (dk, torch.einsum("nqk,qnd->knd", d_scores, query[rows].float()) * scale_value),
            (dv, torch.einsum("nqk,qnd->knd", weights, upstream)),
        ):
            into[columns] = gradient.reshape(kv_end - kv_start, groups, repeats, -1).sum(2)
    none = query.new_empty(0)
    return dq.to(query.dtype), dk.to(query.dtype), dv.to(query.dtype), none, none


class Attention(torch.autograd.Function):
    """Ties forward and backward together as AutogradPrivateUse1 does on an NPU."""

    @staticmethod
    def forward(ctx, query, key, value, head_num, layout, options):
        with torch._C._AutoDispatchBelowAutograd():
            result = torch.ops.npu.npu_fusion_attention(query, key, value, head_num, layout, **options)
        ctx.save_for_backward(query, key, value, *result[:3])
        ctx.arguments = head_num, layout, options
        ctx.mark_non_differentiable(*result[1:4])
        return result

    @staticmethod
    def backward(ctx, dy, *_):
        query, key, value, output, largest, total = ctx.saved_tensors
        head_num, layout, options = ctx.arguments
        taken = {name: options[name] for name in options if name not in ("scale", "dropout_mask")}
        dq, dk, dv, _, _ = torch.ops.npu.npu_fusion_attention_grad(
            query,
            key,
            value,
            dy,
            head_num,
            layout,
            scale_value=options["scale"],
            softmax_max=largest,
            softmax_sum=total,
            softmax_in=None,
            attention_in=output,
            **taken,
        )
        return dq, dk, dv, None, None, None


# ---- npu_rms_norm


def rms_norm(x, gamma, epsilon=1e-6):
    """(y, 1 / root mean square in float32)."""
    CALLS["npu_rms_norm"] += 1
    demand(x.dtype in FLOATS and gamma.dtype == x.dtype, "gamma has the type of x: fp16, bf16 or fp32")
    demand(2 <= x.dim() <= 8 and gamma.shape == x.shape[-gamma.dim() :], "gamma has the last dimensions of x")
    wide = x.float()
    rstd = (wide.square().mean(-1, keepdim=True) + epsilon).rsqrt()
    return (wide * rstd * gamma.float()).to(x.dtype), rstd


def rms_norm_backward(dy, x, gamma, rstd):
    """(dx, dgamma in float32)."""
    CALLS["npu_rms_norm_backward"] += 1
    demand(dy.dtype == x.dtype == gamma.dtype and rstd.dtype == torch.float32, "types of the backward pass")
    normed = x.float() * rstd
    scaled = dy.float() * gamma.float()
    dx = rstd * (scaled - normed * (scaled * normed).mean(-1, keepdim=True))
    return dx.to(x.dtype), (dy.float() * normed).flatten(0, -2).sum(0)


class RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, gamma, epsilon):
        with torch._C._AutoDispatchBelowAutograd():
            y, rstd = torch.ops.npu.npu_rms_norm(x, gamma, epsilon)
        ctx.save_for_backward(x, gamma, rstd)
        ctx.mark_non_differentiable(rstd)
        return y, rstd

    @staticmethod
    def backward(ctx, dy, _):
        x, gamma, rstd = ctx.saved_tensors
        return *torch.ops.npu.npu_rms_norm_backward(dy.contiguous(), x, gamma, rstd), None


# ---- npu_rotary_mul


def check_rotary(x, r1, r2, mode):
    """Documented limits of rotary_mode half, layout SBND."""
    demand(mode == "half", "only rotary_mode half is built here")
    demand(x.dim() == r1.dim() == r2.dim() == 4, "4-D tensors only")
    demand(x.dtype == r1.dtype == r2.dtype and x.dtype in FLOATS, "one type: fp16, bf16 or fp32")
    length, batch, heads, size = x.shape
    demand(size % 2 == 0 and size < 896, "D is even and below 896")
    demand(batch < 1000 and heads < 1000, "B and N are below 1000")
    allowed = ((length, 1, 1, size), (length, batch, 1, size), (length, batch, heads, size))
    demand(r1.shape == r2.shape and tuple(r1.shape) in allowed, "cos and sin of SBND are S11D, SB1D or SBND")
    demand(not r1.requires_grad or batch * heads <= 1024, "gradients of cos and sin need B * N <= 1024")


def _halves_turned(x):
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def rotary_mul(x, r1, r2, rotary_mode="half", rotate=None):
    """cos * x + sin * (-x2, x1)."""
    CALLS["npu_rotary_mul"] += 1
    demand(rotate is None, "rotate is not built here")
    check_rotary(x, r1, r2, rotary_mode)
    return (r1.float() * x.float() + r2.float() * _halves_turned(x.float())).to(x.dtype)


def rotary_mul_backward(grad, x, r1, r2, rotary_mode="half"):
    """(dx, dcos, dsin); the last two are not computed here."""
    CALLS["npu_rotary_mul_backward"] += 1
    check_rotary(x, r1, r2, rotary_mode)
    turned = grad.float() * r2.float()
    dx = (r1.float() * grad.float() - _halves_turned(turned)).to(x.dtype)
    return dx, torch.zeros_like(r1), torch.zeros_like(r2)


class RotaryMul(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, r1, r2, mode, rotate):
        assert not r1.requires_grad and not r2.requires_grad
        ctx.save_for_backward(x, r1, r2)
        ctx.mode = mode
        with torch._C._AutoDispatchBelowAutograd():
            return torch.ops.npu.npu_rotary_mul(x, r1, r2, mode, rotate)

    @staticmethod
    def backward(ctx, grad):
        dx, _, _ = torch.ops.npu.npu_rotary_mul_backward(grad, *ctx.saved_tensors, ctx.mode)
        return dx, None, None, None, None


# ---- npu_swiglu


def swiglu(x, dim=-1):
    """silu(first half) * second half."""
    CALLS["npu_swiglu"] += 1
    demand(x.dtype in FLOATS and 1 <= x.dim() <= 8 and x.shape[dim] % 2 == 0, "1-D to 8-D, two halves, float")
    gate, up = x.float().chunk(2, dim=dim)
    return (torch.nn.functional.silu(gate) * up).to(x.dtype)


def swiglu_backward(grad, x, dim=-1):
    """Gradient of both halves."""
    CALLS["npu_swiglu_backward"] += 1
    gate, up = x.float().chunk(2, dim=dim)
    wide, sigmoid = grad.float(), gate.sigmoid()
    d_gate = wide * up * sigmoid * (1 + gate * (1 - sigmoid))
    return torch.cat((d_gate, wide * gate * sigmoid), dim=dim).to(x.dtype)


class Swiglu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, dim):
        ctx.save_for_backward(x)
        ctx.dim = dim
        with torch._C._AutoDispatchBelowAutograd():
            return torch.ops.npu.npu_swiglu(x, dim)

    @staticmethod
    def backward(ctx, grad):
        [x] = ctx.saved_tensors
        return torch.ops.npu.npu_swiglu_backward(grad, x, ctx.dim), None


# ---- registration

_LIBRARIES: list[torch.library.Library] = []
_STAND_IN: list[types.ModuleType] = []  # in place of torch_npu, where there is none


def _defaults() -> dict[str, Any]:
    """Optional arguments of npu_fusion_attention: the dispatcher leaves out those that have their default value."""
    return {
        "pse": None,
        "padding_mask": None,
        "atten_mask": None,
        "scale": 1.0,
        "keep_prob": 1.0,
        "pre_tockens": UNBOUNDED,
        "next_tockens": UNBOUNDED,
        "inner_precise": 0,
        "prefix": None,
        "actual_seq_qlen": None,
        "actual_seq_kvlen": None,
        "sparse_mode": 0,
        "gen_mask_parallel": True,
        "sync": False,
        "softmax_layout": "",
        "sink": None,
        "dropout_mask": None,
        "seed": 0,
        "offset": 0,
    }


def _named(arguments: tuple, named: dict[str, Any]) -> dict[str, Any]:
    return {**_defaults(), **dict(zip(_defaults(), arguments, strict=False)), **named}


def _attention_cpu(query, key, value, head_num, layout, *arguments, **named):
    return attention(query, key, value, head_num, layout, **_named(arguments, named))


def _attention_autograd(query, key, value, head_num, layout, *arguments, **named):
    return Attention.apply(query, key, value, head_num, layout, _named(arguments, named))


def _attention_grad_cpu(query, key, value, dy, head_num, layout, **named):
    options = {"scale_value": 1.0, "softmax_max": None, "softmax_sum": None, "attention_in": None, "numels": 0}
    return attention_grad(query, key, value, dy, head_num, layout, **{**_defaults(), **options, **named})


def remove() -> None:
    """Remove the stub module torch_npu, which transformers would detect. The kernels stay registered."""
    for module in _STAND_IN:
        if sys.modules.get("torch_npu") is module:
            del sys.modules["torch_npu"]


def install() -> str:
    """Register the kernels once in this process and return which schemas they implement."""
    real = importlib.util.find_spec("torch_npu") if "torch_npu" not in sys.modules else sys.modules["torch_npu"]
    if _LIBRARIES:
        module = sys.modules.setdefault("torch_npu", *_STAND_IN)
        return str(getattr(module, "__version__", "?"))
    if real is None:
        definitions = torch.library.Library("npu", "DEF")
        for name, schema in SCHEMAS.items():
            definitions.define(name + schema)
        _LIBRARIES.append(definitions)
        module: Any = types.ModuleType("torch_npu")
        module.__version__ = "stand-in"
        for name in SCHEMAS:
            setattr(module, name, getattr(torch.ops.npu, name))
        sys.modules["torch_npu"] = module
        _STAND_IN.append(module)
    else:
        import torch_npu  # noqa: F401
    library = torch.library.Library("npu", "IMPL")
    kernels = {
        "npu_fusion_attention": (_attention_cpu, _attention_autograd),
        "npu_fusion_attention_grad": (_attention_grad_cpu, None),
        "npu_rms_norm": (rms_norm, lambda x, gamma, epsilon=1e-6: RmsNorm.apply(x, gamma, epsilon)),
        "npu_rms_norm_backward": (rms_norm_backward, None),
        "npu_rotary_mul": (
            rotary_mul,
            lambda x, r1, r2, rotary_mode="half", rotate=None: RotaryMul.apply(x, r1, r2, rotary_mode, rotate),
        ),
        "npu_rotary_mul_backward": (rotary_mul_backward, None),
        "npu_swiglu": (swiglu, lambda x, dim=-1: Swiglu.apply(x, dim)),
        "npu_swiglu_backward": (swiglu_backward, None),
    }
    for name, (kernel, with_gradient) in kernels.items():
        library.impl(name, kernel, "CPU")
        if with_gradient is not None:
            library.impl(name, with_gradient, "AutogradCPU")
    _LIBRARIES.append(library)
    return str(sys.modules["torch_npu"].__version__)
