"""Ascend's fused attention: torch_npu.npu_fusion_attention over a packed stream (layout TND).

Contract from torch_npu's operator documentation (2.13.0), CANN's aclnnFlashAttentionVarLenScore and its source:

- query [T, N, d], key and value [T, G, d], 3-D; head_num is the N of this rank; groups are not repeated.
- actual_seq_qlen, actual_seq_kvlen: cumulative ends as host integers, no leading zero. CANN 9 refuses a list that ends
  below T without a closing 0; ours ends at T always, the padding being a segment of its own.
- atten_mask, True where masked, with sparse_mode 2 (causal, anchored at the upper left): the compressed 2048 × 2048
  upper triangle, whatever T is. Without a mask the operator computes full attention and says nothing.
- scale is 1 unless given.

Without an NPU the calls are held against these rules by tests/npu_operators.py and ci/npu_contract.sh. Speed, memory
and the numbers of real hardware are not known from that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from mindspeed_llm.attention.boundary_cache import BoundaryCache
from mindspeed_llm.errors import DeviceError

# Segments of one call. CANN documents 2,048, torch_npu's documentation 1,024 for packed streams; until measured, 1,024.
MOST_SEGMENTS = 1024
MOST_TOKENS = 1024 * 1024
MOST_HEADS = 256
MOST_HEAD_SIZE = 768
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
COMPRESSED_MASK = 2048
CAUSAL_FROM_UPPER_LEFT = 2


@dataclass(frozen=True)
class KernelCall:
    """Part of a stream that one call of the operator takes.

    Attributes:
        tokens: of this part.
        ends: cumulative ends of its segments, counted from its own start; last = tokens.
    """

    tokens: int
    ends: tuple[int, ...]


def split_calls(actual_seq_len: Sequence[int], most: int = MOST_SEGMENTS) -> list[KernelCall]:
    """Divide a boundary list at segment ends into parts of at most `most` segments.

    Segments (3, 5, 6, 9) with at most two in a call: ends (3, 5) of 5 tokens, then ends (1, 4) of 4 tokens.
    """
    if len(actual_seq_len) <= most:
        return [KernelCall(actual_seq_len[-1], tuple(actual_seq_len))]
    calls, start = [], 0
    for first in range(0, len(actual_seq_len), most):
        part = actual_seq_len[first : first + most]
        calls.append(KernelCall(part[-1] - start, tuple(end - start for end in part)))
        start = part[-1]
    return calls


def exceeded_limit(query: torch.Tensor, key: torch.Tensor) -> str | None:
    """The first of the operator's limits that these shapes break, with the way out; None if there is none."""
    tokens, heads, head_size = query.shape
    groups = key.shape[1]
    if query.dtype not in DTYPES:
        return f"it takes float16, bfloat16 and float32, not {query.dtype}: give --bf16"
    if head_size > MOST_HEAD_SIZE:
        return f"it takes head sizes to {MOST_HEAD_SIZE}, this model has {head_size} (--kv-channels)"
    if heads > MOST_HEADS:
        return f"it takes {MOST_HEADS} heads on a rank, this layout has {heads}: raise --tensor-model-parallel-size"
    if heads % groups:
        return f"heads ({heads}) must be a multiple of groups ({groups}) on a rank: lower --tensor-model-parallel-size"
    if tokens > MOST_TOKENS:
        return f"it takes {MOST_TOKENS:,} tokens, a micro-batch has {tokens:,}: lower --micro-batch-size"
    return None


class NpuFusionAttention:
    """One call of torch_npu.npu_fusion_attention for a micro-batch; several where there are more segments than one
    call takes."""

    name: ClassVar[str] = "npu_fusion_attention"
    row_bytes: ClassVar[int] = 2 * 8 * 4  # maximum and sum, each eight times

    def __init__(self) -> None:
        self._calls = BoundaryCache(lambda ends, _: split_calls(ends))
        self._masks: dict[torch.device, torch.Tensor] = {}

    def unsupported(self, device: str, dtype: torch.dtype, head_size: int) -> str | None:
        """It needs an NPU and the limits of the operator."""
        if device != "npu":
            return "needs an NPU"
        if dtype not in DTYPES:
            return f"takes float16, bfloat16 and float32, not {dtype}"
        if head_size > MOST_HEAD_SIZE:
            return f"takes head sizes to {MOST_HEAD_SIZE}, not {head_size}"
        try:
            import torch_npu
        except ImportError:
            return "torch_npu is not installed"
        return None if hasattr(torch_npu, "npu_fusion_attention") else "this torch_npu does not have it"

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        actual_seq_len: Sequence[int],
        softmax_scale: float,
    ) -> torch.Tensor:
        """Attend; shapes as in `contract.Kernel`.

        Raises:
            DeviceError: a limit of the operator; the message names it and the way out.
        """
        reason = exceeded_limit(query, key)
        if reason is not None:
            raise DeviceError(f"npu_fusion_attention: {reason}")
        assert actual_seq_len[-1] == query.shape[0], "the last segment ends with the stream"
        calls = self._calls(actual_seq_len, query.device)
        if len(calls) == 1:
            return self._attend(query, key, value, calls[0].ends, softmax_scale)
        # Split and joined once, so that the backward pass joins gradients instead of adding whole ones for each part.
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
        """The compressed mask, made once for a device: True above the diagonal."""
        if device not in self._masks:
            square = torch.ones(COMPRESSED_MASK, COMPRESSED_MASK, dtype=torch.bool, device=device)
            self._masks[device] = square.triu_(1)
        return self._masks[device]
