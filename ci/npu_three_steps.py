"""pretrain_gpt.py as `--device npu` would run it, on a machine without an NPU: torchrun ... ci/npu_three_steps.py FLAGS

The command line, data, model, optimizer and loop are those of a run on an NPU; the attention kernel and the fused
operators are called through torch_npu. What differs: tensors lie in host memory, gloo stands for hccl, and behind the
operators are the strict CPU kernels of tests/npu_operators.py. At the end each rank prints how often each operator was
called, as one line of JSON. PYTHONPATH must name this repository and its tests/.

Not a test on Ascend: ci/npu_contract.sh says what this rules out.
"""

from __future__ import annotations

import json
import sys

import npu_operators
import torch

import pretrain_gpt
from mindspeed_llm.devices import Device, apply_patches


class NpuOnTheHost(Device):
    """An NPU as far as the choice of kernels and operators goes; the CPU for everything else."""

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
    """Where an NPU's patches would be applied: the host's, then torch_npu with CPU kernels behind its operators."""
    apply_patches("cpu")
    npu_operators.install()
    torch.npu.get_device_name = lambda index: "no NPU: host memory"


def main() -> None:
    """The entry point itself, handed this device and these operators."""
    pretrain_gpt.choose_device = lambda _: NpuOnTheHost("npu")
    pretrain_gpt.apply_patches = patch_for_host
    sys.argv[1:1] = ["--device", "npu"]
    pretrain_gpt.main()
    report = {"torch_npu": npu_operators.install(), "calls": dict(npu_operators.CALLS)}
    print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
