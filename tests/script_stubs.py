"""Run the scripts of examples/mcore with stubs, and read the command lines that they start."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
TUNE_SCRIPTS = sorted((ROOT / "examples/mcore").glob("*/tune_*.sh"))
PRETRAIN_SCRIPTS = sorted((ROOT / "examples/mcore").glob("*/pretrain_*.sh"))
FROM_OUTSIDE = (
    "RAW_DATA_PATH DATA_PATH TOKENIZER_MODEL OUTPUT_PREFIX CKPT_LOAD_DIR CKPT_SAVE_DIR PEFT_DIR NPUS_PER_NODE NNODES "
    "NODE_RANK MASTER_ADDR MASTER_PORT WORLD_SIZE TP PP MBS GBS TRAIN_ITERS TRAIN_EPOCHS"
)
# What a training script needs from its user.
GIVEN = {"TOKENIZER_MODEL": "tokenizer", "CKPT_LOAD_DIR": "base", "CKPT_SAVE_DIR": "checkpoints"}


def run_with_stub(
    script: Path, folder: Path, *flags: str, status: int = 0, **environment: str
) -> tuple[int, list[str], str]:
    """Run a script with stubs for torchrun and python that write down their arguments; a check succeeds.

    The variables of GIVEN that the script needs are set unless `environment` has them.

    Returns:
        The script's status, the stub's name and arguments, and the WORLD_SIZE that it saw.
    """
    stubs = folder / "stubs"
    stubs.mkdir(exist_ok=True)
    for name in ("torchrun", "python"):
        stub = stubs / name
        stub.write_text(
            f"#!{sys.executable}\nimport json, os, sys\n"
            "if sys.argv[-1] == '--check-only': sys.exit(0)\n"
            f"json.dump([[{name!r}, *sys.argv[1:]], os.environ.get('WORLD_SIZE', '')], open('seen.json', 'w'))\n"
            f"print('trained')\nsys.exit({status})\n",
            "utf-8",
        )
        stub.chmod(stub.stat().st_mode | stat.S_IXUSR)
    clean = {key: value for key, value in os.environ.items() if key not in FROM_OUTSIDE.split()}
    text = script.read_text("utf-8")
    clean |= {name: value for name, value in GIVEN.items() if f"{name}:-your-" in text}
    clean |= {"PATH": f"{stubs}:{os.environ['PATH']}", **environment}
    done = subprocess.run(
        ["bash", str(script), *flags], cwd=folder, env=clean, capture_output=True, text=True, check=False
    )
    seen, world_size = json.loads((folder / "seen.json").read_text("utf-8"))
    return done.returncode, seen, world_size


def ranks_and_words(script: Path) -> tuple[int, list[str]]:
    """Return the number of ranks that a tune script starts, and the command line of pretrain_gpt.py."""
    with tempfile.TemporaryDirectory() as folder:
        _, seen, _ = run_with_stub(script, Path(folder))
    per_machine, machines = (int(seen[seen.index(flag) + 1]) for flag in ("--nproc_per_node", "--nnodes"))
    program = next(number for number, word in enumerate(seen) if word.endswith("pretrain_gpt.py"))
    return per_machine * machines, seen[program + 1 :]
