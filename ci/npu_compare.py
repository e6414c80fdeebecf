"""Compare the two runs of ci/npu_contract.sh; the exit status is 1 if they differ.

    python ci/npu_compare.py FOLDER [--on-device]

FOLDER contains cpu/, npu/ and npu.log. With --on-device, the npu run was on real NPUs, which round differently.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

# Relative tolerance on the CPU: model, data and weights are the same in float32; only the order of summation differs.
TOLERANCE = 1e-4
# Relative tolerance on an NPU, which may compute float32 products with lower precision. An estimate, not yet measured.
DEVICE_TOLERANCE = 2e-3
OPERATORS = ("npu_fusion_attention", "npu_rms_norm", "npu_rotary_mul", "npu_swiglu")
BACKWARD = {"npu_fusion_attention": "npu_fusion_attention_grad"}


def figures(run: Path) -> list[tuple[float, float]]:
    """Return (loss, gradient norm) of every step of a run."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["loss"], line["grad_norm"]) for line in lines if line["kind"] == "train"]


def main(folder: Path, on_device: bool = False) -> int:
    """Compare both runs and, without a device, the operator calls; print the result and return the exit status."""
    tolerance = DEVICE_TOLERANCE if on_device else TOLERANCE
    cpu, npu = figures(folder / "cpu"), figures(folder / "npu")
    problems = [] if len(cpu) == len(npu) == 3 else [f"steps: {len(cpu)} and {len(npu)}, not 3"]
    for step, (ours, theirs) in enumerate(zip(npu, cpu, strict=False), 1):
        print(
            f"step {step}: loss {ours[0]:.6f} (cpu {theirs[0]:.6f}), gradient norm {ours[1]:.6f} (cpu {theirs[1]:.6f})"
        )
        if any(abs(mine - other) > tolerance * abs(other) for mine, other in zip(ours, theirs, strict=True)):
            problems.append(f"step {step} differs by more than {tolerance:g} (relative)")
    problems += [] if on_device else check_calls(folder)
    equal = "the NPU run equals the CPU run" + ("" if on_device else "; all operators were called")
    print("\n".join(f"FAILED: {problem}" for problem in problems) or equal)
    return 1 if problems else 0


def check_calls(folder: Path) -> list[str]:
    """Return a message for each rank and operator that was not called, forward or backward."""
    problems = []
    ranks = [
        json.loads(line) for line in (folder / "npu.log").read_text().splitlines() if line.startswith('{"torch_npu"')
    ]
    if len(ranks) != 2:
        problems.append(f"{len(ranks)} ranks reported their calls, not 2")
    for rank in ranks:
        print(f"torch_npu {rank['torch_npu']}: {rank['calls']}")
        names = [name for each in OPERATORS for name in (each, BACKWARD.get(each, f"{each}_backward"))]
        problems += [f"{name} was never called" for name in names if not rank["calls"].get(name)]
        if rank["torch_npu"] == "stand-in":
            problems.append("no real torch_npu was loaded")
    return problems


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), "--on-device" in sys.argv[2:]))
