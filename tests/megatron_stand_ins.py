"""Stand-ins for checkouts of Megatron-LM and MindSpeed, and processes that import our adaptor beside them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
LINE = "import mindspeed_llm.megatron_adaptor; print('went on')"
PACKS = ("--is-instruction-dataset", "--neat-pack", "--data-path", "packed")


def checkout(folder: Path, number: str, training: bool = True) -> Path:
    """Write the files of a Megatron-LM checkout by which its version is recognised."""
    (folder / "megatron" / "core").mkdir(parents=True)
    (folder / "megatron" / "core" / "__init__.py").touch()
    parts = zip(("MAJOR", "MINOR", "PATCH"), number.split("."), strict=True)
    (folder / "megatron" / "core" / "package_info.py").write_text("".join(f"{name} = {n}\n" for name, n in parts))
    if training:
        (folder / "megatron" / "training").mkdir()
        (folder / "megatron" / "training" / "__init__.py").write_text("from .training import pretrain\n")
        (folder / "megatron" / "training" / "training.py").write_text("def pretrain(model_provider):\n    return 1\n")
    return folder


def mindspeed(folder: Path, number: str = "0.16.0") -> Path:
    """Write a checkout of MindSpeed, whose adaptor prints the command line that it sees."""
    (folder / "mindspeed").mkdir(parents=True)
    (folder / "setup.py").write_text(f"__version__ = '{number}'\n")
    (folder / "mindspeed" / "__init__.py").touch()
    (folder / "mindspeed" / "megatron_adaptor.py").write_text("import sys\nprint('MindSpeed', *sys.argv[1:])\n")
    (folder / "mindspeed" / "args_utils.py").write_text(
        "import argparse, sys\n"
        "def get_mindspeed_args():\n"
        "    return argparse.Namespace(reset_attention_mask='--reset-attention-mask' in sys.argv)\n"
    )
    return folder


def run(*words: str, path: tuple[Path, ...] = (), code: str = LINE) -> subprocess.CompletedProcess[str]:
    """Run Python code, a script or `-m MODULE` with a command line, and with these folders on PYTHONPATH."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, *path)))}
    program = ["-c", code] if not code.startswith(("-", "/")) else code.split()
    command = [sys.executable, *program, *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd="/")


def assert_refused(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    """Check that a run ended with status 2 and one line that has these parts."""
    lines = done.stderr.splitlines()
    assert done.returncode == 2 and len(lines) == 1 and "went on" not in done.stdout, done.stderr
    assert lines[0].startswith("mindspeed_llm.megatron: error: ") and all(part in lines[0] for part in parts), lines
