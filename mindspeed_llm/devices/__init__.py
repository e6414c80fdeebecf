"""Device selection, properties of the devices, and the patches that megatron-core needs to run on them.

Importing this package imports neither torch nor megatron-core and patches nothing. Entry points call `select_device`
and then `apply_patches`, in that order, before the first import of megatron.core.
"""

from mindspeed_llm.devices.accelerators import ACCELERATORS, Accelerator, peak_of_product
from mindspeed_llm.devices.apply_patches import apply_patches
from mindspeed_llm.devices.cpu_features import bf16_slowdown, cpu_flags
from mindspeed_llm.devices.device import HOST, Device, dry_run_device_kind, select_device
from mindspeed_llm.devices.device_traits import BACKENDS, DEVICES, traits_of

__all__ = [
    "ACCELERATORS",
    "BACKENDS",
    "DEVICES",
    "HOST",
    "Accelerator",
    "Device",
    "apply_patches",
    "bf16_slowdown",
    "cpu_flags",
    "dry_run_device_kind",
    "peak_of_product",
    "select_device",
    "traits_of",
]
