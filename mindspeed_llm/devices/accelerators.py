"""Memory and peak operations per second of known accelerators, with the source of each figure.

The memory is what the tool of the driver reports (nvidia-smi, npu-smi), which a program can use almost entirely. The
peaks are dense operations in 16-bit precision: the data sheets of NVIDIA name twice the value, with sparsity. A figure
without a public data sheet is left out: a guess would turn into a duration or a utilization that no device reaches.
"""

from __future__ import annotations

from dataclasses import dataclass

from mindspeed_llm.devices.device_traits import DeviceName

MIB = 2**20


@dataclass(frozen=True)
class Accelerator:
    """One kind of accelerator, a choice of --device-type.

    Attributes:
        name: value of --device-type.
        device: device of torch that it is: 'cuda' or 'npu'.
        memory: memory of one device in bytes.
        memory_source: source of the memory.
        peak_flops: peak dense operations per second of one device in 16-bit precision; None without a data sheet.
        peak_source: source of the peak, or the reason why there is none.
        product: beginning of the product name that the device reports (`Device.product`); None if the peak of a device
            with such a name is not known.
    """

    name: str
    device: DeviceName
    memory: int
    memory_source: str
    peak_flops: float | None
    peak_source: str
    product: str | None = None


_ASCEND_PEAK = "no public data sheet of Huawei names the peak of this device"
_A100_PEAK = "NVIDIA A100 data sheet: BFLOAT16 312 TFLOPS, dense"
_H100_PEAK = "NVIDIA H100 data sheet: BFLOAT16 1,979 TFLOPS for SXM with sparsity, half of it dense"
_ACCELERATORS = (
    Accelerator(
        "910B", "npu", 65_536 * MIB, "npu-smi on 910B2 and 910B3: 65,536 MB (vllm-ascend issue 975)", None, _ASCEND_PEAK
    ),
    Accelerator(
        "910B-32GB", "npu", 32_768 * MIB, "the 910B4 has 32 GB (vllm-ascend issue 129)", None, _ASCEND_PEAK
    ),
    Accelerator(
        "A100", "cuda", 81_920 * MIB, "NVIDIA A100 data sheet: 80 GB; nvidia-smi: 81,920 MiB", 312e12, _A100_PEAK,
        "NVIDIA A100",
    ),
    Accelerator(
        "A100-40GB", "cuda", 40_960 * MIB, "NVIDIA A100 data sheet: 40 GB; nvidia-smi: 40,960 MiB", 312e12, _A100_PEAK,
        "NVIDIA A100",
    ),
    Accelerator(
        "H100-PCIe", "cuda", 81_559 * MIB, "NVIDIA H100 data sheet: 80 GB; nvidia-smi: 81,559 MiB", 756e12,
        "NVIDIA H100 data sheet: BFLOAT16 1,513 TFLOPS for PCIe with sparsity, half of it dense",
        "NVIDIA H100 PCIe",
    ),
    Accelerator(
        "H100", "cuda", 81_559 * MIB, "NVIDIA H100 data sheet: 80 GB; nvidia-smi: 81,559 MiB", 989e12, _H100_PEAK,
        "NVIDIA H100",
    ),
    Accelerator(
        "H200", "cuda", 143_771 * MIB, "NVIDIA H200 data sheet: 141 GB; nvidia-smi: 143,771 MiB", 989e12,
        "NVIDIA H200 data sheet: BFLOAT16 1,979 TFLOPS for SXM with sparsity, half of it dense",
        "NVIDIA H200",
    ),
)  # fmt: skip

# Value of --device-type → accelerator.
ACCELERATORS = {accelerator.name: accelerator for accelerator in _ACCELERATORS}


def peak_of_product(product: str) -> float | None:
    """Return the peak dense operations per second in 16-bit precision of a device.

    Args:
        product: product name that the device reports, such as 'NVIDIA H100 80GB HBM3'.

    Returns:
        The peak, or None if the device is not known.
    """
    found = [each for each in _ACCELERATORS if each.product is not None and product.startswith(each.product)]
    # The longest beginning is the most specific one: 'NVIDIA H100 PCIe' and not 'NVIDIA H100'.
    return max(found, key=lambda each: len(str(each.product))).peak_flops if found else None
