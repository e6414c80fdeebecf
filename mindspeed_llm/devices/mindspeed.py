"""MindSpeed, if a user asks for it: its adaptor patches megatron-core for Ascend before megatron-core is imported.

Nothing here needs it: attention, norm, rotary, SwiGLU and Adam are called through torch_npu directly. It is for those
who want what else its branch core_r0.16.0 replaces. This path has not been run on an NPU.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import sys

from mindspeed_llm.errors import DeviceError

BRANCH = "core_r0.16.0"


def load_mindspeed(kind: str) -> str:
    """Import MindSpeed's adaptor, before the first import of megatron.core; returns what was loaded, for a person.

    The adaptor reads the program's command line by flags of its own, so it is shown an empty one meanwhile.

    Raises:
        DeviceError: the device is not an NPU, or MindSpeed is not installed or does not load.
    """
    if kind != "npu":
        raise DeviceError(f"--use-mindspeed: MindSpeed is for NPUs, this run is on {kind}; leave the flag out")
    if importlib.util.find_spec("mindspeed") is None:
        raise DeviceError(
            f"--use-mindspeed: MindSpeed is not installed; install its branch {BRANCH}, or leave the flag out: "
            "everything works without it"
        )
    command_line, sys.argv = sys.argv, sys.argv[:1]
    try:
        importlib.import_module("mindspeed.megatron_adaptor")
    except Exception as error:  # whatever a foreign package's patches run into
        raise DeviceError(
            f"--use-mindspeed: MindSpeed does not load here ({type(error).__name__}: {error}); it must be branch "
            f"{BRANCH}. Or leave the flag out"
        ) from error
    finally:
        sys.argv = command_line
    return f"MindSpeed {_version()} patched megatron-core first (--use-mindspeed; not tested by this project on an NPU)"


def _version() -> str:
    try:
        return importlib.metadata.version("mindspeed")
    except importlib.metadata.PackageNotFoundError:
        return "of unknown version"
