"""pretrain_gpt.py as `--device npu` would run it, on a machine without an NPU: torchrun ... ci/npu_three_steps.py FLAGS

The command line, data, model, optimizer and loop are those of a run on an NPU; the attention kernel and the fused
operators are called through torch_npu. What differs: tensors lie in host memory, gloo stands for hccl, and behind the
operators are the strict CPU kernels of tests/npu_operators.py. At the end each rank prints how often each operator was
called, as one line of JSON. Not a test on Ascend: ci/npu_contract.sh says what this rules out.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from mindspeed_llm.arguments.rules import parse_pretrain
from mindspeed_llm.devices import Device, apply_patches

if TYPE_CHECKING:
    import torch


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


def main() -> None:
    """Run the command line."""
    arguments = parse_pretrain(["--device", "npu", *sys.argv[1:]], int(os.environ.get("WORLD_SIZE", "1")))
    apply_patches("cpu")
    import npu_operators

    behind = npu_operators.install()
    from mindspeed_llm.datasets import build_datasets
    from mindspeed_llm.training import run

    datasets = build_datasets(arguments.data, arguments.training.seed, evaluate=False)
    run(arguments, NpuOnTheHost("npu"), datasets, None)
    print(json.dumps({"torch_npu": behind, "calls": dict(npu_operators.CALLS)}), flush=True)


if __name__ == "__main__":
    main()
