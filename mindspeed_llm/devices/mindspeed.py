"""Load MindSpeed (--use-mindspeed), whose adaptor patches megatron-core for Ascend before megatron-core is imported.

MindSpeed is optional: this project calls torch_npu directly for attention, norm, rotary embedding, SwiGLU and Adam. The
flag is for users who want the other replacements of its branch core_r0.16.0. It has not been tested on an NPU.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Sequence

from mindspeed_llm.errors import DeviceError

BRANCH = "core_r0.16.0"


def load_mindspeed(kind: str) -> str:
    """Import MindSpeed's adaptor. Call this before the first import of megatron.core.

    Args:
        kind: kind of the device; must be 'npu'.

    Returns:
        A message with the version that was loaded.

    Raises:
        DeviceError: The device is not an NPU, or MindSpeed is not installed or cannot be imported.
    """
    if kind != "npu":
        raise DeviceError(f"--use-mindspeed: MindSpeed is for NPUs, this run is on {kind}; leave the flag out")
    if importlib.util.find_spec("mindspeed") is None:
        raise DeviceError(
            f"--use-mindspeed: MindSpeed is not installed; install its branch {BRANCH}, or leave the flag out: "
            "everything works without it"
        )
    # It would reject our flags.
    import_adaptor([])
    return f"MindSpeed {_version()} patched megatron-core first (--use-mindspeed; not tested by this project on an NPU)"


def import_adaptor(flags: Sequence[str]) -> None:
    """Import MindSpeed's adaptor, which parses sys.argv and patches Megatron when it is imported.

    Args:
        flags: the words of the command line that it reads.

    Raises:
        DeviceError: It cannot be imported.
    """
    command_line, sys.argv = sys.argv, [*sys.argv[:1], *flags]
    try:
        importlib.import_module("mindspeed.megatron_adaptor")
    except Exception as error:  # wide, because the patches of another package may raise any exception
        raise DeviceError(
            f"MindSpeed does not load here ({type(error).__name__}: {error}); install its branch {BRANCH}, remove the "
            "option of MindSpeed that needs what is missing, or leave MindSpeed and --use-mindspeed out"
        ) from error
    finally:
        sys.argv = command_line


def _version() -> str:
    try:
        return importlib.metadata.version("mindspeed")
    except importlib.metadata.PackageNotFoundError:
        return "of unknown version"
