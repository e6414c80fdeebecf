"""Load MindSpeed (--use-mindspeed), whose adaptor patches megatron-core for Ascend before megatron-core is imported.

MindSpeed is optional: this project calls torch_npu directly for attention, norm, rotary embedding, SwiGLU and Adam. The
flag is for users who want the other replacements of its branch core_r0.16.0. It has not been tested on an NPU.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import re
import sys
from collections.abc import Sequence
from pathlib import Path

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
    found = find_mindspeed()
    if found is None:
        raise DeviceError(
            f"--use-mindspeed: MindSpeed is not installed; install its branch {BRANCH}, or leave the flag out: "
            "everything works without it"
        )
    # It would reject our flags.
    import_adaptor([])
    return f"MindSpeed {found[0]} patched megatron-core first (--use-mindspeed; not tested by this project on an NPU)"


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


def find_mindspeed() -> tuple[str, Path] | None:
    """Find the MindSpeed on the path without importing it.

    Returns:
        Its version, such as '0.16.0', or 'of unknown version'; and the folder of the package. None if there is none.
    """
    spec = importlib.util.find_spec("mindspeed")
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent
    # Of a checkout, on PYTHONPATH or installed with `pip install -e`. The package itself has no version.
    file = folder.parent / "setup.py"
    found = re.search(r"^__version__ = '([\d.]+)'$", file.read_text("utf-8"), re.M) if file.is_file() else None
    if found is not None:
        return found[1], folder
    # Not `importlib.metadata.version`, which MindSpeed replaces.
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.distribution("mindspeed").version, folder
    return "of unknown version", folder
