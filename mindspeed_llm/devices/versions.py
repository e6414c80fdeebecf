"""What a run runs on, for its first lines and its records: versions of the libraries, names of the devices."""

from __future__ import annotations

import importlib.metadata
import os
import re
import sys
from pathlib import Path

import mindspeed_llm
from mindspeed_llm.devices.device import Device

MISSING = "not here"
# Where CANN's set_env.sh points, and the files there that say its version: `version=8.2.RC1` or `Version=9.0.0`.
_CANN_HOMES = ("ASCEND_TOOLKIT_HOME", "ASCEND_HOME_PATH")
_CANN_FILES = ("*/ascend_toolkit_install.info", "ascend_toolkit_install.info", "version.cfg", "*/version.info")


def library_versions() -> dict[str, str]:
    """Library → version, or MISSING."""
    import torch

    found = {
        "mindspeed_llm": mindspeed_llm.__version__,
        "torch": torch.__version__,
        "megatron-core": _installed("megatron-core"),
        "torch_npu": _installed("torch_npu"),
        "CANN": cann_version(),
    }
    if "mindspeed" in sys.modules:  # --use-mindspeed loaded it
        found["MindSpeed"] = _installed("mindspeed")
    if torch.version.cuda is not None:
        found["CUDA"] = torch.version.cuda
    return found


def cann_version() -> str:
    """The version of the CANN whose set_env.sh was sourced, or MISSING."""
    for home in filter(None, map(os.environ.get, _CANN_HOMES)):
        for pattern in _CANN_FILES:
            for file in sorted(Path(home).glob(pattern)):
                match = re.search(r"^\s*version\s*=\s*\[?([\w.]+)", file.read_text("utf-8", "replace"), re.I | re.M)
                if match:
                    return match[1]
    return MISSING


def describe_device(device: Device) -> str:
    """A device as a person says it: 'cpu (gloo)', 'npu Ascend910B3 (hccl)'."""
    product = device.product
    return device.label if product is None else f"{device.kind} {product} ({device.backend})"


def _installed(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return MISSING
