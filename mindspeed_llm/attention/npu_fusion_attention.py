"""Ascend's fused attention: torch_npu.npu_fusion_attention over a packed stream (layout TND).

The rules of the operator, from torch_npu's operator documentation (2.13.0), CANN's aclnnFlashAttentionVarLenScore and
its source:

- query [T, N, d], key and value [T, G, d], 3-D; head_num is the N of this rank; groups are not repeated.
- actual_seq_qlen, actual_seq_kvlen: cumulative ends as host integers, without a leading zero. CANN 9 rejects a list
  that ends below T without a closing 0. Our list always ends at T, because the padding is a separate segment.
- atten_mask, True where masked, with sparse_mode 2 (causal, anchored at the upper left): the compressed 2048 × 2048
  upper triangle for any T. Without a mask the operator computes full attention, without a warning.
- scale is 1 by default.

tests/npu_operators.py and ci/npu_contract.sh check the calls against these rules without an NPU. They cannot measure
the speed, memory and numerical results of real hardware.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from mindspeed_llm.attention.boundary_cache import BoundaryCache
from mindspeed_llm.errors import DeviceError

# Maximum number of segments of one call. CANN documents 2,048, torch_npu 1,024 for packed streams; the lower limit is
# used until it is measured on hardware.
MOST_SEGMENTS = 1024
MOST_TOKENS = 1024 * 1024
MOST_HEADS = 256
MOST_HEAD_SIZE = 768
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
COMPRESSED_MASK = 2048  # rows and columns
CAUSAL_FROM_UPPER_LEFT = 2  # the operator's sparse_mode


@dataclass(frozen=True)
class KernelCall:
    """Part of a stream that one call of the operator processes.

    Attributes:
        tokens: length of this part in slots.
        ends: cumulative ends of its segments, counted from the start of this part; the last is `tokens`.
    """

    tokens: int
    ends: tuple[int, ...]


def split_calls(actual_seq_len: Sequence[int], max_segments: int = MOST_SEGMENTS) -> list[KernelCall]:
    """Split a boundary list at segment ends into parts of at most `max_segments` segments.

    For example, the ends 3, 5, 6, 9 with max_segments 2 → ends (3, 5) with 5 tokens, then ends (1, 4) with 4 tokens.

    Args:
        actual_seq_len: cumulative ends of the segments.
        max_segments: maximum number of segments of one call.
    """
    if len(actual_seq_len) <= max_segments:
        return [KernelCall(actual_seq_len[-1], tuple(actual_seq_len))]
    calls, start = [], 0
    for first in range(0, len(actual_seq_len), max_segments):
        part = actual_seq_len[first : first + max_segments]
        calls.append(KernelCall(part[-1] - start, tuple(end - start for end in part)))
        start = part[-1]
    return calls


def exceeded_limit(query: torch.Tensor, key: torch.Tensor) -> str | None:
    """Return the first limit of the operator that these tensors exceed and how to fix it, or None.

    Args:
        query: [T, heads, head size].
        key: [T, groups, head size].
    """
    tokens, heads, head_size = query.shape
    groups = key.shape[1]
    if query.dtype not in DTYPES:
        return f"it supports float16, bfloat16 and float32, not {query.dtype}: use --bf16"
    if head_size > MOST_HEAD_SIZE:
        return f"it supports head sizes up to {MOST_HEAD_SIZE}, this model has {head_size} (--kv-channels)"
    if heads > MOST_HEADS:
        return f"it supports {MOST_HEADS} heads per rank, this layout has {heads}: raise --tensor-model-parallel-size"
    if heads % groups:
        return f"heads ({heads}) must be a multiple of groups ({groups}) per rank: lower --tensor-model-parallel-size"
    if tokens > MOST_TOKENS:
        return f"it supports {MOST_TOKENS:,} tokens, a micro-batch has {tokens:,}: lower --micro-batch-size"
    return None


class NpuFusionAttention:
    """One call of torch_npu.npu_fusion_attention per micro-batch, or several calls if it has too many segments."""

    name: ClassVar[str] = "npu_fusion_attention"
    row_bytes: ClassVar[int] = 2 * 8 * 4  # softmax_max and softmax_sum, float32 [T, heads, 8] each

    def __init__(self) -> None:
        self._calls = BoundaryCache(lambda ends, _: split_calls(ends))
        self._masks: dict[torch.device, torch.Tensor] = {}

    def unsupported(self, device: str, dtype: torch.dtype, head_size: int) -> str | None:
        """Return the reason if the device, dtype, head size or torch_npu is not supported, else None."""
        if device != "npu":
            return "requires an NPU"
        if dtype not in DTYPES:
            return f"supports float16, bfloat16 and float32, not {dtype}"
        if head_size > MOST_HEAD_SIZE:
            return f"supports head sizes up to {MOST_HEAD_SIZE}, not {head_size}"
        try:
            import torch_npu
        except ImportError:
            return "torch_npu is not installed"
        return None if hasattr(torch_npu, "npu_fusion_attention") else "the installed torch_npu does not have it"

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        actual_seq_len: Sequence[int],
        softmax_scale: float,
    ) -> torch.Tensor:
        """Compute attention; arguments and shapes as in `AttentionKernel`: query [T, heads, head size].

        Raises:
            DeviceError: The tensors exceed a limit of the operator. The message names the limit and how to fix it.
        """
        reason = exceeded_limit(query, key)
        if reason is not None:
            raise DeviceError(f"npu_fusion_attention: {reason}")
        assert actual_seq_len[-1] == query.shape[0], "the last segment ends with the stream"
        calls = self._calls(actual_seq_len, query.device)
        if len(calls) == 1:
            return self._attend(query, key, value, calls[0].ends, softmax_scale)
        # One split and one concatenation: slicing would add a gradient of the complete stream for each part.
        parts = [call.tokens for call in calls]
        streams = zip(query.split(parts), key.split(parts), value.split(parts), calls, strict=True)
        return torch.cat([self._attend(q, k, v, call.ends, softmax_scale) for q, k, v, call in streams])

    def _attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, ends: tuple[int, ...], scale: float
    ) -> torch.Tensor:
        import torch_npu

        outputs: tuple[Any, ...] = torch_npu.npu_fusion_attention(
            query,
            key,
            value,
            query.shape[1],
            "TND",
            atten_mask=self._mask(query.device),
            scale=scale,
            keep_prob=1.0,
            actual_seq_qlen=ends,
            actual_seq_kvlen=ends,
            sparse_mode=CAUSAL_FROM_UPPER_LEFT,
        )
        return outputs[0]

    def _mask(self, device: torch.device) -> torch.Tensor:
        """Return the compressed causal mask of a device, bool [2048, 2048], True above the diagonal."""
        if device not in self._masks:
            square = torch.ones(COMPRESSED_MASK, COMPRESSED_MASK, dtype=torch.bool, device=device)
            self._masks[device] = square.triu_(1)
        return self._masks[device]
