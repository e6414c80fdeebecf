"""Run a Megatron-LM script on packs without changing it: `python -m mindspeed_llm.megatron pretrain_gpt.py FLAGS`."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

from mindspeed_llm.errors import ConfigError
from mindspeed_llm.megatron.activation import activate
from mindspeed_llm.megatron.pretrain_patch import end_with


def main() -> None:
    """Run the script of the command line as Python would, after replacing `megatron.training.pretrain`."""
    if len(sys.argv) < 2 or not Path(sys.argv[1]).is_file():
        given = f"{sys.argv[1]}: no such file; " if len(sys.argv) > 1 else ""
        end_with(
            ConfigError(f"{given}give a Megatron-LM script: python -m mindspeed_llm.megatron pretrain_gpt.py FLAGS")
        )
    sys.argv = sys.argv[1:]
    # As `python SCRIPT` does: the folder of the script comes first, and not the current one.
    sys.path[0] = str(Path(sys.argv[0]).resolve().parent)
    activate(sys.argv[1:], Path(sys.argv[0]))
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
