"""What distinguishes the kinds of devices. The rest of the program asks these records instead of comparing names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

DeviceName = Literal["cpu", "cuda", "npu"]
DEVICES: tuple[DeviceName, ...] = get_args(DeviceName)
# 'meta' is torch's device without data, which a dry run builds the job on.
Kind = Literal[DeviceName, "meta"]


@dataclass(frozen=True)
class DeviceTraits:
    """Properties of one kind of device.

    Attributes:
        backend: collective library, as torch.distributed.init_process_group takes it.
        is_host: tensors lie in host memory, and weights are initialized there.
        has_data: tensors have data; False on torch's meta device.
        has_streams: messages and computation are ordered by streams.
        pins_host_memory: copies from pinned host memory do not block.
        sums_float64: the collective library adds float64.
        ignored_flags: flags of fused operators that have no effect there → the reason.
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

# Collective libraries that a command line can name: --distributed-backend.
BACKENDS = tuple(_TRAITS[kind].backend for kind in ("cuda", "npu", "cpu"))


def traits_of(kind: str) -> DeviceTraits:
    """Return the properties of a kind of device.

    Args:
        kind: 'cpu', 'cuda', 'npu' or 'meta'; also the type of a torch.device.
    """
    return _TRAITS[kind]
