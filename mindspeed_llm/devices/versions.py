"""Versions of the libraries and descriptions of the devices, for the table at the start of a run and its records."""

from __future__ import annotations

import importlib.metadata
import os
import re
import sys
from pathlib import Path

import mindspeed_llm
from mindspeed_llm.devices.device import Device

MISSING = "not here"
# Variables that CANN's set_env.sh sets to its directory, and the files there with its version: `version=8.2.RC1` or
# `Version=9.0.0`.
_CANN_HOMES = ("ASCEND_TOOLKIT_HOME", "ASCEND_HOME_PATH")
_CANN_FILES = ("*/ascend_toolkit_install.info", "ascend_toolkit_install.info", "version.cfg", "*/version.info")


def library_versions() -> dict[str, str]:
    """Return the version of each library, or MISSING if it is not installed."""
    import torch

    versions = {
        "mindspeed_llm": mindspeed_llm.__version__,
        "torch": torch.__version__,
        "megatron-core": _installed("megatron-core"),
        "torch_npu": _installed("torch_npu"),
        "CANN": cann_version(),
    }
    if "mindspeed" in sys.modules:  # --use-mindspeed loaded it
        versions["MindSpeed"] = _installed("mindspeed")
    if torch.version.cuda is not None:
        versions["CUDA"] = torch.version.cuda
    return versions


def cann_version() -> str:
    """Return the version of the CANN whose set_env.sh was sourced, or MISSING."""
    for home in filter(None, map(os.environ.get, _CANN_HOMES)):
        for pattern in _CANN_FILES:
            for file in sorted(Path(home).glob(pattern)):
                match = re.search(r"^\s*version\s*=\s*\[?([\w.]+)", file.read_text("utf-8", "replace"), re.I | re.M)
                if match:
                    return match[1]
    return MISSING


def describe_device(device: Device) -> str:
    """Return a short description of a device: 'cpu (gloo)' or 'npu Ascend910B3 (hccl)'."""
    product = device.product
    return device.label if product is None else f"{device.kind} {product} ({device.backend})"


def _installed(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return MISSING
