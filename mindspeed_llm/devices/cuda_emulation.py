"""The CPU (or, for a dry run, torch's meta device) in the place of CUDA, for megatron-core alone."""

from __future__ import annotations

import functools
import importlib
import logging
import types
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from mindspeed_llm.devices.device_traits import Kind

# Modules of megatron-core 0.16.1 that create tensors with the literal device="cuda" on the paths used here.
MODULES_THAT_NAME_CUDA = (
    "megatron.core.pipeline_parallel.schedules",
    "megatron.core.optimizer.optimizer",
    "megatron.core.optimizer.grad_scaler",
    "megatron.core.optimizer.clip_grads",
    "megatron.core.tensor_parallel.data",
    "megatron.core.transformer.utils",
    "megatron.core.utils",
    "megatron.core.dist_checkpointing.strategies.state_dict_saver",
)
_FACTORIES = ("tensor", "zeros", "ones", "empty", "full", "arange", "zeros_like", "ones_like", "empty_like")


def emulate_cuda(kind: Kind) -> None:
    """Answer torch.cuda's questions of place and random state for a host device."""
    import torch

    host = torch.device(kind)

    class HostGenerators:
        """torch.cuda.default_generators, indexed by whatever current_device() returns."""

        def __getitem__(self, _: object) -> torch.Generator:
            return torch.default_generator

    def current_device() -> torch.device:
        return host

    def call_now(callable_: Callable[[], None], **_: object) -> None:
        callable_()

    def synchronize(device: object = None) -> None:
        return None

    def get_rng_state(device: object = None) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(new_state: torch.Tensor, device: object = None) -> None:
        torch.set_rng_state(new_state)

    def manual_seed(seed: int) -> None:
        torch.default_generator.manual_seed(seed)

    cuda: Any = torch.cuda
    cuda.current_device = current_device
    cuda.synchronize = synchronize
    cuda.default_generators = HostGenerators()
    cuda._lazy_call = call_now
    for module in (cuda, cuda.random):
        module.get_rng_state = get_rng_state
        module.set_rng_state = set_rng_state
        module.manual_seed = manual_seed
    # The CPU's generator stands in for the device's, so it does change inside the device's random context.
    logging.getLogger("megatron.core.tensor_parallel.random").addFilter(
        lambda record: "CPU RNG state changed" not in record.getMessage()
    )


def redirect_factories(kind: Kind) -> None:
    """Let `torch.zeros(..., device="cuda")` in megatron-core's modules create its tensor on the host device.

    The modules get a stand-in for the name `torch`; torch itself, and everybody else who uses it, is untouched.
    """
    import torch

    class HostTorch(types.ModuleType):
        """torch, with factories that read the device 'cuda' as the host device."""

        def __getattr__(self, name: str) -> Any:
            return getattr(torch, name)

    stand_in = HostTorch("torch")
    for name in _FACTORIES:
        setattr(stand_in, name, _on_host(getattr(torch, name), kind))
    for module_name in MODULES_THAT_NAME_CUDA:
        importlib.import_module(module_name).torch = stand_in  # type: ignore[attr-defined]


def _on_host(factory: Callable[..., torch.Tensor], kind: Kind) -> Callable[..., torch.Tensor]:
    @functools.wraps(factory)
    def create(*args: Any, **kwargs: Any) -> torch.Tensor:
        if str(kwargs.get("device", "")).startswith("cuda"):
            kwargs["device"] = kind
        return factory(*args, **kwargs)

    return create


def name_tensors_like_cuda(kind: Kind) -> None:
    """Let Tensor.type() say 'torch.cuda.FloatTensor' for a float tensor of this device, and .cuda() stay here."""
    import torch

    original_type = torch.Tensor.type

    def type_named_like_cuda(self: torch.Tensor, dtype: Any = None, non_blocking: bool = False, **kwargs: Any) -> Any:
        if dtype is not None:
            return original_type(self, dtype, non_blocking, **kwargs)
        name = original_type(self).split(".")[-1]
        return f"torch.cuda.{name}"

    torch.Tensor.type = type_named_like_cuda  # type: ignore[assignment, method-assign]
    if kind != "npu":  # torch_npu redirects .cuda() itself

        def stay(self: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
            return self

        torch.Tensor.cuda = stay  # type: ignore[assignment, method-assign]
