"""Devices: which one a run uses, and the few things megatron-core needs patched to run on it.

Importing this package imports neither torch nor megatron-core and patches nothing; entry points call
`choose_device` and then `apply_patches`, in that order, before the first import of megatron.core.
"""

from mindspeed_llm.devices.choice import Device, choose_device
from mindspeed_llm.devices.patches import apply_patches

__all__ = ["Device", "apply_patches", "choose_device"]
