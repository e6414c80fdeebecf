"""Emulate the parts of torch.cuda that megatron-core uses, on the CPU or, for a dry run, on torch's meta device."""

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

# Modules of megatron-core 0.16.1 that create tensors with the literal device="cuda" in code that this project uses.
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
    """Replace torch.cuda's functions for the current device and the RNG state with those of a host device.

    Args:
        kind: 'cpu' or 'meta'.
    """
    import torch

    host = torch.device(kind)

    class HostGenerators:
        """Stand for torch.cuda.default_generators, which is indexed by the result of current_device()."""

        def __getitem__(self, _: object) -> torch.Generator:
            return torch.default_generator

    # A device and not an index, because megatron-core passes the result as `device=`.
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
    # Without CUDA, torch queues this call for an initialization that never comes, and seeds would have no effect.
    cuda._lazy_call = call_now
    # megatron-core uses both modules, and torch.cuda imported these functions from torch.cuda.random by name.
    for module in (cuda, cuda.random):
        module.get_rng_state = get_rng_state
        module.set_rng_state = set_rng_state
        module.manual_seed = manual_seed
    # The CPU generator replaces the device's generator, so it does change inside the device's RNG context, and
    # megatron-core's warning about this is wrong here.
    logging.getLogger("megatron.core.tensor_parallel.random").addFilter(
        lambda record: "CPU RNG state changed" not in record.getMessage()
    )


def redirect_factories(kind: Kind) -> None:
    """Let `torch.zeros(..., device="cuda")` in megatron-core's modules create the tensor on the host device.

    The name `torch` in these modules refers to a proxy. The module torch itself does not change.

    Args:
        kind: 'cpu' or 'meta'.
    """
    import torch

    class HostTorch(types.ModuleType):
        """Proxy of torch whose tensor factories interpret the device 'cuda' as the host device."""

        def __getattr__(self, name: str) -> Any:
            return getattr(torch, name)

    # A TorchFunctionMode is not enough: it is inactive inside autograd's backward pass, so recomputation would fail.
    proxy = HostTorch("torch")
    for name in _FACTORIES:
        setattr(proxy, name, _on_host(getattr(torch, name), kind))
    for module_name in MODULES_THAT_NAME_CUDA:
        importlib.import_module(module_name).torch = proxy  # type: ignore[attr-defined]


def _on_host(factory: Callable[..., torch.Tensor], kind: Kind) -> Callable[..., torch.Tensor]:
    @functools.wraps(factory)
    def create(*args: Any, **kwargs: Any) -> torch.Tensor:
        if str(kwargs.get("device", "")).startswith("cuda"):
            kwargs["device"] = kind
        return factory(*args, **kwargs)

    return create


def name_tensors_like_cuda(kind: Kind) -> None:
    """Let Tensor.type() return 'torch.cuda.FloatTensor' for float32 tensors, and .cuda() keep the device of a tensor.

    Args:
        kind: 'cpu', 'meta' or 'npu'.
    """
    import torch

    original_type = torch.Tensor.type

    def type_named_like_cuda(self: torch.Tensor, dtype: Any = None, non_blocking: bool = False, **kwargs: Any) -> Any:
        if dtype is not None:
            return original_type(self, dtype, non_blocking, **kwargs)
        name = original_type(self).split(".")[-1]
        return f"torch.cuda.{name}"

    torch.Tensor.type = type_named_like_cuda  # type: ignore[assignment, method-assign]
    if kind != "npu":  # torch_npu redirects .cuda() itself

        def keep_device(self: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
            return self

        torch.Tensor.cuda = keep_device  # type: ignore[assignment, method-assign]
