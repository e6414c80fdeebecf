"""Properties of each kind of device. Other modules read them instead of comparing the names of devices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

DeviceName = Literal["cpu", "cuda", "npu"]
DEVICES: tuple[DeviceName, ...] = get_args(DeviceName)
# 'meta' is torch's device without data. A dry run builds the job on it.
Kind = Literal[DeviceName, "meta"]


@dataclass(frozen=True)
class DeviceTraits:
    """Properties of one kind of device.

    Attributes:
        backend: communication backend for torch.distributed.init_process_group.
        is_host: whether tensors are in host memory, where weights are initialized as well.
        has_data: whether tensors have data; False on torch's meta device.
        has_streams: whether streams order messages and computation.
        pins_host_memory: whether copies from pinned host memory are asynchronous.
        sums_float64: whether the backend can sum float64 tensors.
        ignored_flags: flags of fused operators without effect on this device, each with the reason.
    """

    backend: str
    is_host: bool = False
    has_data: bool = True
    has_streams: bool = True
    pins_host_memory: bool = False
    sums_float64: bool = True
    ignored_flags: Mapping[str, str] = field(default_factory=dict)


_TRAITS: dict[str, DeviceTraits] = {
    "cpu": DeviceTraits(
        backend="gloo",
        is_host=True,
        has_streams=False,
        ignored_flags={
            "--use-flash-attn": "attention on the CPU has one kernel, which is used with and without it",
            "--use-fused-rmsnorm": "RMSNorm on the CPU is PyTorch's",
            "--use-fused-swiglu": "SwiGLU on the CPU is PyTorch's",
            "--use-fused-rotary-pos-emb": "rotary embeddings on the CPU are PyTorch's",
        },
    ),
    "cuda": DeviceTraits(
        backend="nccl",
        pins_host_memory=True,
        ignored_flags={
            "--use-fused-rmsnorm": "RMSNorm on CUDA is PyTorch's, which is one kernel",
            "--use-fused-rotary-pos-emb": "rotary embeddings on CUDA are megatron-core's; a fused kernel is not built",
        },
    ),
    "npu": DeviceTraits(backend="hccl", sums_float64=False),
    "meta": DeviceTraits(backend="fake", has_data=False),
}

# Choices of --distributed-backend.
BACKENDS = tuple(_TRAITS[kind].backend for kind in ("cuda", "npu", "cpu"))


def traits_of(kind: str) -> DeviceTraits:
    """Return the properties of a kind of device.

    Args:
        kind: 'cpu', 'cuda', 'npu' or 'meta', such as the attribute `type` of a torch.device.
    """
    return _TRAITS[kind]
