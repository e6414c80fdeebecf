"""The devices that a command line can name, and the collective library of each."""

from __future__ import annotations

from typing import Literal, get_args

DeviceName = Literal["cpu", "cuda", "npu"]
DEVICES: tuple[DeviceName, ...] = get_args(DeviceName)
# '--distributed-backend nccl' in a script means the library of the device that is used.
BACKENDS: dict[str, str] = {"cuda": "nccl", "npu": "hccl", "cpu": "gloo"}
