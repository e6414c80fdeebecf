"""Run pretrain_gpt.py with `--device npu` on a machine without an NPU.

    torchrun ... ci/npu_three_steps.py FLAGS

The command line, data, model, optimizer and training loop are those of a run on an NPU, and the attention kernel and
the fused operators are called through torch_npu. The differences: tensors are in host memory, the backend is gloo
instead of hccl, and the operators are implemented by the strict CPU kernels of tests/npu_operators.py. At the end each
rank prints the number of calls of each operator as one line of JSON. PYTHONPATH must contain this repository and its
tests/.

This is not a test on Ascend hardware; ci/npu_contract.sh lists what it detects.
"""

from __future__ import annotations

import json
import sys

import npu_operators
import torch

from mindspeed_llm.devices import Device, apply_patches
from mindspeed_llm.programs import pretrain


class NpuOnTheHost(Device):
    """A device that selects the kernels and operators of an NPU and uses the CPU for everything else."""

    @property
    def backend(self) -> str:
        return "gloo"

    @property
    def torch_device(self) -> torch.device:
        return Device("cpu").torch_device

    def activate(self) -> None:
        return

    def synchronize(self) -> None:
        return

    def peak_memory_bytes(self) -> int:
        return Device("cpu").peak_memory_bytes()


def patch_for_host(_: str, mindspeed: bool = False) -> None:
    """Apply the patches of the CPU instead of those of an NPU, then register CPU kernels for torch_npu's operators."""
    apply_patches("cpu")
    npu_operators.install()
    torch.npu.get_device_name = lambda index: "no NPU: host memory"


def main() -> None:
    """Run the entry point with this device and these operators."""
    pretrain.select_device = lambda _: NpuOnTheHost("npu")
    pretrain.apply_patches = patch_for_host
    pretrain.main(["--device", "npu", *sys.argv[1:]])
    report = {"torch_npu": npu_operators.install(), "calls": dict(npu_operators.CALLS)}
    print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
