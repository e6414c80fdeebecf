"""The device of a process: which one it is, and what a training loop does with it."""

from __future__ import annotations

import importlib.util
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mindspeed_llm.devices.device_traits import DeviceTraits, Kind, traits_of
from mindspeed_llm.entry_point import keep_freed_memory
from mindspeed_llm.errors import DeviceError
from mindspeed_llm.launcher_environment import read_launcher_environment

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Device:
    """The device of this process.

    Attributes:
        kind: 'cpu', 'cuda', 'npu', or 'meta' for a dry run, which allocates nothing.
        index: the device's number on this machine (LOCAL_RANK); 0 on the CPU.
    """

    kind: Kind
    index: int = 0

    @property
    def traits(self) -> DeviceTraits:
        """What distinguishes devices of this kind."""
        return traits_of(self.kind)

    @property
    def backend(self) -> str:
        """Name of the collective library, as torch.distributed.init_process_group takes it."""
        return self.traits.backend

    @property
    def product(self) -> str | None:
        """Return the vendor's name, such as 'NVIDIA H100 PCIe'; None on the CPU and the meta device."""
        return None if self.kind in ("cpu", "meta") else str(self._module().get_device_name(self.index))

    @property
    def torch_device(self) -> torch.device:
        """The device that tensors of this process live on."""
        import torch

        return torch.device(self.kind) if self.kind in ("cpu", "meta") else torch.device(self.kind, self.index)

    @property
    def label(self) -> str:
        """A person's name for it, such as 'cpu (gloo)'."""
        return f"{self.kind} ({self.backend})"

    def activate(self) -> None:
        """Make it the current device of this process.

        Raises:
            DeviceError: there are fewer devices than processes on this machine.
        """
        if self.kind == "cpu":
            keep_freed_memory()
        if self.kind in ("cpu", "meta"):
            return
        module = self._module()
        if self.index >= module.device_count():
            raise DeviceError(
                f"process {self.index} of this machine has no {self.kind} device: there are {module.device_count()}; "
                "start at most that many processes per machine (torchrun --nproc_per_node)"
            )
        module.set_device(self.index)

    def synchronize(self) -> None:
        """Wait until the device has done all work given to it."""
        if self.kind in ("cuda", "npu"):
            self._module().synchronize()

    def make_deterministic(self) -> None:
        """Let the same run give the same numbers twice, at some cost in speed; before the first use of the device.

        An operator without a deterministic form is warned about and used all the same.
        """
        import torch

        os.environ.setdefault("HCCL_DETERMINISTIC", "true")
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        os.environ.setdefault("NCCL_ALGO", "Ring")
        torch.use_deterministic_algorithms(True, warn_only=True)

    def peak_memory_bytes(self) -> int:
        """Most memory this process has held: on the device, or on the CPU the resident set."""
        if self.kind in ("cuda", "npu"):
            return int(self._module().max_memory_allocated())
        import resource
        import sys

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return int(peak) if sys.platform == "darwin" else int(peak) * 1024

    def _module(self) -> Any:
        import torch

        return getattr(torch, self.kind)


def select_device(name: str) -> Device:
    """The device that `--device NAME` means on this machine.

    Args:
        name: 'auto' (an NPU if there is one, else a CUDA GPU, else the CPU), 'cpu', 'cuda' or 'npu'.

    Raises:
        DeviceError: the named device, or the library for it, is not there.
    """
    index = read_launcher_environment().local_rank
    if name in ("cpu", "cuda") and "torch" not in sys.modules:
        # An installed torch_npu loads itself into `import torch`, which fails where CANN is missing.
        os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"
    _import_torch()
    if name == "npu" or (name == "auto" and importlib.util.find_spec("torch_npu") and _npu_count() > 0):
        if _npu_count() == 0:
            raise DeviceError("--device npu: torch_npu sees no NPU; use --device cpu, or check the driver and CANN")
        return Device("npu", index)
    import torch

    if name == "cuda" or (name == "auto" and torch.cuda.is_available()):
        if not torch.cuda.is_available():
            raise DeviceError(
                "--device cuda: this torch sees no CUDA GPU; use --device cpu, or install a CUDA build of torch"
            )
        return Device("cuda", index)
    return Device("cpu")


def dry_run_device_kind(name: str) -> str:
    """Return the kind of device that a dry run with `--device NAME` plans for.

    'auto' is this machine's accelerator; without one an NPU, the accelerator of the scripts in examples/.
    """
    if name != "auto":
        return name
    here = "npu" if importlib.util.find_spec("torch_npu") else select_device("auto").kind
    return "npu" if here == "cpu" else here


WITHOUT_CANN = (
    "source CANN's set_env.sh; or, on a machine without CANN, set TORCH_DEVICE_BACKEND_AUTOLOAD=0, which keeps "
    "torch_npu out of `import torch`, and use --device cpu"
)


def _import_torch() -> None:
    """Import torch, which brings an installed torch_npu with it.

    Raises:
        DeviceError: torch_npu was brought along and failed.
    """
    try:
        import torch  # noqa: F401
    except Exception as error:  # torch raises RuntimeError around whatever the backend raised
        if importlib.util.find_spec("torch_npu") is None:
            raise
        raise DeviceError(
            f"torch cannot be imported with the torch_npu installed here ({error}): {WITHOUT_CANN}"
        ) from error


def _npu_count() -> int:
    """NPUs that torch_npu sees.

    Raises:
        DeviceError: torch_npu is not installed or does not load.
    """
    try:
        import torch
        import torch_npu  # noqa: F401
    except (ImportError, RuntimeError) as error:
        raise DeviceError(
            f"--device npu: torch_npu does not load ({error}): install the torch_npu of this torch's version and "
            f"{WITHOUT_CANN}"
        ) from error
    return int(torch.npu.device_count())  # type: ignore[attr-defined]
