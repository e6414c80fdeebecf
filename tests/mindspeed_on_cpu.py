"""What MindSpeed's adaptor needs on a machine without an NPU, over a real torch_npu wheel with stub CANN libraries.

PYTHONPATH holds the wheel, LD_LIBRARY_PATH the stub libraries (ci/megatron_checkout.sh). Nothing of Megatron or
MindSpeed is imported here: the product does that, in the order that is to be tested.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import types
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import megatron_on_cpu
import npu_operators
import torch

# Imported by MindSpeed for kernels that no test calls.
STUBS = ("triton", "six", "scipy", "torchair")


class _AnythingType(type):
    def __getattr__(cls, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return Anything


class Anything(metaclass=_AnythingType):
    """A name of a stub module: has every attribute, can be called, and leaves what it decorates as it is."""

    def __init__(self, *_: object, **__: object) -> None:
        return

    def __call__(self, function: Any = None, *_: object, **__: object) -> Any:
        return function


class _StubModule(types.ModuleType):
    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return Anything


class _StubFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds a stub for every module of the packages in STUBS."""

    def find_spec(self, name: str, *_: object) -> importlib.machinery.ModuleSpec | None:
        found = name.partition(".")[0] in STUBS
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if found else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        module: Any = _StubModule(spec.name)
        module.__version__ = "0"
        module.jit = lambda function=None, **_: function if function is not None else lambda inner: inner
        module.autotune = module.heuristics = lambda *_, **__: lambda inner: inner
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        return


def prepare(mindspeed: Path, megatron: Path, also: Callable[[], None]) -> Counter[str]:
    """Prepare this process for a script that loads MindSpeed and our adaptor.

    Args:
        mindspeed: folder that holds `mindspeed`.
        megatron: folder that holds `megatron`.
        also: called when MindSpeed has patched Megatron, before our patch is applied.

    Returns:
        Number of calls of each operator of torch_npu, counted from here on.
    """
    npu_operators.install()
    # It would give torch.cuda to the NPU. Here the CPU has it, as without MindSpeed.
    import torch_npu.contrib

    torch_npu.contrib.transfer_to_npu = types.ModuleType("torch_npu.contrib.transfer_to_npu")
    sys.modules["torch_npu.contrib.transfer_to_npu"] = torch_npu.contrib.transfer_to_npu
    # MindSpeed's Adam asks for it.
    torch.npu.current_device = lambda: torch.device("cpu")
    for name in [name for name in sys.modules if name.partition(".")[0] in STUBS]:
        del sys.modules[name]
    sys.meta_path.insert(0, _StubFinder())
    megatron_on_cpu.prepare_host(megatron)
    sys.path.insert(0, str(mindspeed))
    _finish_before_our_patch(also)
    return npu_operators.CALLS


def _finish_before_our_patch(also: Callable[[], None]) -> None:
    """Let the CPU have Megatron, and our attention the NPU's kernel, when our patch is applied."""
    from mindspeed_llm.devices import Device
    from mindspeed_llm.megatron import pretrain_patch

    replace = pretrain_patch.replace_pretrain

    def replace_on_host(*arguments: Any) -> None:
        from mindspeed_llm.megatron import packed_run

        megatron_on_cpu.import_megatron()
        megatron_on_cpu.replace_torch()
        megatron_on_cpu.replace_parts()
        packed_run.select_device = lambda _: Device("npu")
        also()
        replace(*arguments)

    pretrain_patch.replace_pretrain = replace_on_host
