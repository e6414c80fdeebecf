"""Apply the patches that megatron-core needs without CUDA and without Apex or TransformerEngine.

`patch_list.py` lists each patch with its target, its reason, the versions that need it and the condition for its
removal. Entry points call `apply_patches` once, before they import megatron.core. No other module of this project
patches code.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from mindspeed_llm.devices.patch import Patch

if TYPE_CHECKING:
    from mindspeed_llm.devices.device_traits import Kind

logger = logging.getLogger(__name__)

_applied_for: Kind | None = None


def apply_patches(kind: Kind, mindspeed: bool = False) -> list[Patch]:
    """Apply the patches of a kind of device, once per process, and import megatron.core.

    Args:
        kind: kind of the device.
        mindspeed: whether MindSpeed's adaptor patches megatron-core first (--use-mindspeed). This is logged.

    Returns:
        The patches that are applied.

    Raises:
        DeviceError: `mindspeed` is True, and MindSpeed is not installed, does not load or does not support the device.
    """
    global _applied_for
    from mindspeed_llm.devices import patch_list

    wanted = [patch for patch in patch_list.PATCHES if kind in patch.kinds]
    if _applied_for is not None:
        assert _applied_for == kind, f"patches for {_applied_for} are already applied; a process has one kind of device"
        return wanted
    assert "megatron.core" not in sys.modules, "apply_patches must come before the first import of megatron.core"
    for patch in wanted:
        if patch.before_import:
            patch.apply(kind)
    # MindSpeed's adaptor, too, must run before megatron.core is imported.
    if mindspeed:
        from mindspeed_llm.devices.mindspeed import load_mindspeed

        logger.info(load_mindspeed(kind))
    with _without_import_noise(), _without_compile(kind):
        for module in _MODULES_TO_IMPORT:
            importlib.import_module(module)
    for patch in wanted:
        if not patch.before_import:
            patch.apply(kind)
    _suppress_api_warnings(kind)
    _applied_for = kind
    return wanted


# All packages of megatron-core that a run uses. They are imported here, while torch.compile is replaced.
_MODULES_TO_IMPORT = (
    "megatron.core",
    "megatron.core.distributed",
    "megatron.core.models.gpt",
    "megatron.core.optimizer",
    "megatron.core.pipeline_parallel.schedules",
    "megatron.core.tensor_parallel.random",
    "megatron.core.dist_checkpointing",
    "megatron.core.dist_checkpointing.strategies.fully_parallel",
)


@contextlib.contextmanager
def _without_import_noise() -> Iterator[None]:
    """Suppress megatron-core's warnings at import that Apex and TransformerEngine are missing: neither is needed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _suppress_api_warnings(kind: Kind) -> None:
    """Suppress warnings of torch and megatron-core about each other's API, which a user of this program cannot fix."""
    for message in (
        r"`torch\.distributed\.\w+` is deprecated",
        r"`load_state_dict` is deprecated",
        "Please use DTensor",
    ):
        warnings.filterwarnings("ignore", message=message, category=FutureWarning)
    if kind != "cuda":
        warnings.filterwarnings("ignore", message=r".*CUDA_DEVICE_MAX_CONNECTIONS", category=UserWarning)


@contextlib.contextmanager
def _without_compile(kind: Kind) -> Iterator[None]:
    """Replace torch.compile with the identity while megatron-core is imported, except on CUDA."""
    # megatron-core decorates its fused activations with torch.compile at import. This needs a C++ compiler on the CPU
    # and does not work on Ascend. The decoration alone imports torch._dynamo, which takes seconds.
    if kind == "cuda":
        yield
        return
    import torch

    original = torch.compile

    # Called without a model when it is used as a decorator with arguments.
    def identity(model: Callable | None = None, **_: object) -> Callable:
        return model if model is not None else identity

    torch.compile = identity
    try:
        yield
    finally:
        torch.compile = original
