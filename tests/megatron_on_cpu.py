"""What megatron.training needs on a machine without CUDA: stubs of modules, and a torch.cuda that means the CPU.

None of it belongs to the product. On a GPU and under MindSpeed, Megatron has what it needs.
"""

from __future__ import annotations

import functools
import importlib
import importlib.machinery
import importlib.util
import os
import queue
import sys
import sysconfig
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch
from packaging.version import Version
from torch.distributed.checkpoint.filesystem import SerializationFormat

from mindspeed_llm.devices import cuda_emulation
from mindspeed_llm.devices.optim import FusedAdam


class ApexLikeAdam(FusedAdam):
    """FusedAdam with the argument that Megatron passes to Apex's from 0.17 on."""

    def __init__(self, params: Any, *, capturable: bool = False, **others: Any) -> None:
        super().__init__(params, **others)


class HostCuda(types.ModuleType):
    """torch.cuda, with a device that exists and has no streams and no memory statistics."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.cuda, name)

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def device_count() -> int:
        return 1

    @staticmethod
    def set_device(_: object) -> None:
        return None

    empty_cache = synchronize = staticmethod(lambda *_: None)
    get_device_capability = staticmethod(lambda *_: (8, 0))
    get_device_properties = staticmethod(
        lambda *_: types.SimpleNamespace(major=8, total_memory=1, multi_processor_count=1)
    )
    memory_stats = staticmethod(lambda *_: {})
    memory_allocated = max_memory_allocated = memory_reserved = max_memory_reserved = staticmethod(lambda *_: 0)
    mem_get_info = staticmethod(lambda *_: (1, 1))

    class Stream:
        def wait_stream(self, _: object) -> None:
            return None

    current_stream = Stream

    class stream:  # noqa: N801 - the name of torch
        def __init__(self, _: object) -> None:
            return

        def __enter__(self) -> None:
            return

        def __exit__(self, *_: object) -> None:
            return


def use_host(site: Path) -> None:
    """Import megatron.training from `site` on the CPU.

    Args:
        site: folder that holds `megatron`, put first on sys.path.
    """
    prepare_host(site)
    missing = [name for name in ("triton", "six") if importlib.util.find_spec(name) is None]
    stubs = [name for name in ("triton", "triton.language", "six") if name.partition(".")[0] in missing]
    for name in stubs:
        _stub(name)
    compile_, torch.compile = torch.compile, lambda model=None, **_: model if model is not None else lambda f: f
    try:
        import_megatron()
    finally:
        torch.compile = compile_
        for name in stubs:
            del sys.modules[name]  # torch looks for triton, too
    replace_torch()
    _replace_apex()
    replace_parts()


def prepare_host(site: Path) -> None:
    """Put Megatron on the path, and give torch.cuda the CPU, before Megatron is imported.

    Args:
        site: folder that holds `megatron`, put first on sys.path.
    """
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    sys.path.insert(0, str(site))
    cuda_emulation.emulate_cuda("cpu")
    cuda_emulation.name_tensors_like_cuda("cpu")


def import_megatron() -> None:
    """Import all modules of Megatron in which something is replaced."""
    for name in (
        "megatron.training",
        "megatron.training.checkpointing",
        "megatron.core.models.gpt.gpt_layer_specs",
    ):
        importlib.import_module(name)


class _Stub(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return object


def _stub(name: str) -> None:
    module: Any = _Stub(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    module.__path__ = []
    module.jit = lambda function=None, **_: function if function is not None else lambda f: f
    module.__version__ = "0"
    sys.modules[name] = module
    if "." in name:
        setattr(sys.modules[name.partition(".")[0]], name.partition(".")[2], module)


def replace_torch() -> None:
    """Give all modules of Megatron a torch whose device 'cuda' is the CPU."""
    proxy: Any = _HostTorch("torch")
    proxy.cuda = HostCuda("torch.cuda")
    for name in (*cuda_emulation._FACTORIES, "rand", "randn"):
        setattr(proxy, name, cuda_emulation._on_host(getattr(torch, name), "cpu"))
    for name, module in list(sys.modules.items()):
        if name.startswith(("megatron.", "mindspeed.")) and getattr(module, "torch", None) is torch:
            module.torch = proxy  # type: ignore[attr-defined]


class _HostTorch(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def _replace_apex() -> None:
    """Replace Apex's Adam and norm: PyTorch's Adam cannot be resumed, and its norm refuses sequence parallelism."""
    import megatron.core.optimizer as optimizers
    from megatron.core.optimizer import distrib_optimizer
    from megatron.core.transformer.torch_norm import WrappedTorchNorm

    from mindspeed_llm.model.rms_norm import RMSNorm

    optimizers.Adam = distrib_optimizer.Adam = ApexLikeAdam
    optimizers.USING_PYTORCH_OPTIMIZER = False
    distrib_optimizer.HAVE_APEX_OR_TE = distrib_optimizer.USING_APEX_OPTIMIZER = True
    for name, module in list(sys.modules.items()):
        for key, value in list(vars(module).items()) if name.startswith("megatron.core.") else ():
            if value is WrappedTorchNorm:
                setattr(module, key, RMSNorm)


def replace_parts() -> None:
    """Replace what is compiled for, or provided by, a GPU."""
    import megatron.core.utils
    from megatron.core.dist_checkpointing.strategies import filesystem_async
    from megatron.core.optimizer import distrib_optimizer
    from megatron.training import arguments, initialize, training

    initialize._compile_dependencies = lambda: None
    initialize.set_jit_fusion_options = training.set_jit_fusion_options = lambda: None
    # In float32 the main weights are views of the parameters, which autograd lets nobody write to.
    optimizer = distrib_optimizer.DistributedOptimizer
    optimizer.load_state_dict = torch.no_grad()(optimizer.load_state_dict)
    # This process writes its shards itself. A queue of a server process would import everything again.
    # 0.12.1 forks the process that writes, and the server of its queue.
    if megatron.core.__version__ != "0.12.1":
        filesystem_async._results_queue = queue.Queue()
    else:  # its torch, 2.7 and older, has one format of shards, and no argument for it
        one_format = {"serialization_format": SerializationFormat.TORCH_SAVE}
        filesystem_async._write_item = functools.partial(filesystem_async._write_item, **one_format)
        # It asks for the version of TransformerEngine without looking whether there is one.
        megatron.core.utils._te_version = Version("0")
        distrib_optimizer.quantize_param_shard = lambda *_: None
        np.product = np.prod  # type: ignore[attr-defined]  # its name before NumPy 2
    config_from_args = arguments.core_transformer_config_from_args

    # gloo has no streams: an interleaved pipeline would free outputs while they are being sent.
    @functools.wraps(config_from_args)
    def keep_outputs(*positional: Any, **named: Any) -> Any:
        config = config_from_args(*positional, **named)
        config.deallocate_pipeline_outputs = False
        return config

    arguments.core_transformer_config_from_args = keep_outputs
    # The wheel has an index builder for another version of Python; the one of the installed megatron-core fits.
    helpers = "megatron.core.datasets.helpers_cpp"
    if importlib.util.find_spec(helpers) is None:
        folder = Path(sysconfig.get_paths()["purelib"]) / "megatron" / "core" / "datasets"
        for file in folder.glob("helpers_cpp*.so"):
            spec = importlib.util.spec_from_file_location(helpers, file)
            sys.modules[helpers] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(sys.modules[helpers])
