"""The patches that megatron-core needs outside CUDA and without Apex or TransformerEngine.

Each is written down with its target, its reason, the versions it was found necessary in and when it can go.
`apply_patches` puts them in place; entry points call it once, before megatron.core is imported. Nothing else
in this project patches anything.
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
    """Apply the patches for a kind of device, once per process, and import megatron.core.

    Args:
        kind: of the device.
        mindspeed: let MindSpeed's adaptor patch megatron-core first, and say so.

    Returns:
        the patches that are in place.

    Raises:
        DeviceError: MindSpeed was asked for and is not there.
    """
    global _applied_for
    from mindspeed_llm.devices import patch_list

    wanted = [patch for patch in patch_list.PATCHES if kind in patch.kinds]
    if _applied_for is not None:
        assert _applied_for == kind, f"patches for {_applied_for} are in place; one process has one kind of device"
        return wanted
    assert "megatron.core" not in sys.modules, "apply_patches must come before the first import of megatron.core"
    for patch in wanted:
        if patch.before_import:
            patch.apply(kind)
    if mindspeed:
        from mindspeed_llm.devices.mindspeed import load_mindspeed

        logger.info(load_mindspeed(kind))
    with _without_import_noise(), _without_compile(kind):
        for module in _MODULES_TO_IMPORT:
            importlib.import_module(module)
    for patch in wanted:
        if not patch.before_import:
            patch.apply(kind)
    _silence_advice_for_others(kind)
    _applied_for = kind
    return wanted


# Everything of megatron-core that a run uses: imported here, while torch.compile is out of the way.
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
    """Silence megatron-core's warnings that Apex and TransformerEngine are missing: neither is needed here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _silence_advice_for_others(kind: Kind) -> None:
    """Silence warnings of torch and megatron-core about each other, which no user of this program can follow."""
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
    """Replace torch.compile by the identity while megatron-core is imported, except on CUDA.

    megatron-core decorates its fused activations with torch.compile at import. That needs a C++ compiler on the
    CPU and does not work on Ascend; and the decoration alone imports torch._dynamo, which takes seconds.
    """
    if kind == "cuda":
        yield
        return
    import torch

    original = torch.compile

    def leave_as_it_is(model: Callable | None = None, **_: object) -> Callable:
        return model if model is not None else leave_as_it_is

    torch.compile = leave_as_it_is
    try:
        yield
    finally:
        torch.compile = original
