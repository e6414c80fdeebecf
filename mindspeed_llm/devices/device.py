"""Select the device of a process, and control it in a training loop."""

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
        kind: 'cpu', 'cuda', 'npu', or 'meta' for a dry run, which allocates no memory for tensors.
        index: index of the device on this machine (LOCAL_RANK); 0 on the CPU.
    """

    kind: Kind
    index: int = 0

    @property
    def traits(self) -> DeviceTraits:
        """Properties of this kind of device."""
        return traits_of(self.kind)

    @property
    def backend(self) -> str:
        """Name of the communication backend for torch.distributed.init_process_group."""
        return self.traits.backend

    @property
    def product(self) -> str | None:
        """Product name of the device, such as 'NVIDIA H100 PCIe'; None on the CPU and the meta device."""
        return None if self.kind in ("cpu", "meta") else str(self._module().get_device_name(self.index))

    @property
    def torch_device(self) -> torch.device:
        """The torch.device of the tensors of this process."""
        import torch

        return torch.device(self.kind) if self.kind in ("cpu", "meta") else torch.device(self.kind, self.index)

    @property
    def label(self) -> str:
        """Short description with the backend, such as 'cpu (gloo)'."""
        return f"{self.kind} ({self.backend})"

    def activate(self) -> None:
        """Make this the current device of the process.

        Raises:
            DeviceError: This machine has fewer devices than processes.
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
        """Wait until the device has completed all queued work."""
        if self.kind in ("cuda", "npu"):
            self._module().synchronize()

    def make_deterministic(self) -> None:
        """Enable deterministic algorithms, so that two equal runs give equal results. They may be slower.

        Call this before the first use of the device, because the libraries read their variables when they initialize.
        An operator without a deterministic algorithm causes a warning and is used nevertheless.
        """
        import torch

        # setdefault, so that values of the user remain.
        os.environ.setdefault("HCCL_DETERMINISTIC", "true")
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        os.environ.setdefault("NCCL_ALGO", "Ring")
        torch.use_deterministic_algorithms(True, warn_only=True)

    def peak_memory_bytes(self) -> int:
        """Return the peak memory of this process in bytes: allocated on the device, or on the CPU the resident set."""
        if self.kind in ("cuda", "npu"):
            return int(self._module().max_memory_allocated())
        import resource
        import sys

        # macOS reports ru_maxrss in bytes, Linux in KiB.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return int(peak) if sys.platform == "darwin" else int(peak) * 1024

    def _module(self) -> Any:
        import torch

        return getattr(torch, self.kind)


HOST = Device("cpu")


def select_device(name: str) -> Device:
    """Select the device of this process for `--device NAME`.

    Args:
        name: 'cpu', 'cuda', 'npu', or 'auto' for an NPU if there is one, else a CUDA GPU, else the CPU.

    Raises:
        DeviceError: The device or its library is not available, or torch cannot be imported with torch_npu.
    """
    index = read_launcher_environment().local_rank
    if name in ("cpu", "cuda") and "torch" not in sys.modules:
        # `import torch` loads an installed torch_npu, which fails on a machine without CANN.
        os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"
    _import_torch()
    # find_spec comes first, because _npu_count raises an error where torch_npu is not installed.
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

    Args:
        name: 'cpu', 'cuda', 'npu', or 'auto' for the accelerator of this machine, and for an NPU if it has none: the
            scripts in examples/ are for NPUs.

    Returns:
        'cpu', 'cuda' or 'npu'.

    Raises:
        DeviceError: torch cannot be imported.
    """
    if name != "auto":
        return name
    # Not loaded, only looked up: a dry run needs neither an NPU nor CANN.
    here = "npu" if importlib.util.find_spec("torch_npu") else select_device("auto").kind
    return "npu" if here == "cpu" else here


WITHOUT_CANN = (
    "source CANN's set_env.sh; or, on a machine without CANN, set TORCH_DEVICE_BACKEND_AUTOLOAD=0, so that "
    "`import torch` does not load torch_npu, and use --device cpu"
)


def _import_torch() -> None:
    """Import torch, and with it an installed torch_npu.

    Raises:
        DeviceError: The installed torch_npu cannot be imported.
    """
    try:
        import torch  # noqa: F401
    # Wide, because torch_npu may raise any exception, which torch may wrap in a RuntimeError.
    except Exception as error:
        # Without torch_npu, a failing `import torch` is a broken installation, whose traceback is needed.
        if importlib.util.find_spec("torch_npu") is None:
            raise
        raise DeviceError(
            f"torch cannot be imported with the torch_npu installed here ({error}): {WITHOUT_CANN}"
        ) from error


def _npu_count() -> int:
    """Return the number of NPUs that torch_npu finds.

    Raises:
        DeviceError: torch_npu is not installed or cannot be imported.
    """
    try:
        import torch
        import torch_npu  # noqa: F401
    except (ImportError, RuntimeError) as error:
        raise DeviceError(
            f"--device npu: torch_npu does not load ({error}): install the version of torch_npu that matches torch, "
            f"and {WITHOUT_CANN}"
        ) from error
    return int(torch.npu.device_count())  # type: ignore[attr-defined]
