"""Run pretrain_gpt.py with slow saves: slow_save_program.py FOLDER SECONDS [flags], started by torchrun.

Each rank waits SECONDS between writing the shards of a checkpoint and hashing them, as if the checkpoint were large. A
rank that ends normally writes its exit status to FOLDER/status_RANK, because torchrun does not report it.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))


def main() -> int:
    import pretrain_gpt
    from mindspeed_llm.devices import apply_patches
    from mindspeed_llm.entry_point import run_program

    folder, seconds = Path(sys.argv[1]), float(sys.argv[2])
    sys.argv[1:3] = []
    apply_patches("cpu")
    from mindspeed_llm.checkpoints import save_checkpoint

    real = save_checkpoint.seal_checkpoint

    def slow_seal(directory: Path) -> None:
        time.sleep(seconds)
        real(directory)

    save_checkpoint.seal_checkpoint = slow_seal
    status = run_program(pretrain_gpt.main, "pretrain_gpt.py")
    (folder / f"status_{os.environ['RANK']}").write_text(str(status))
    return status


if __name__ == "__main__":
    sys.exit(main())
