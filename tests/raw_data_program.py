"""Run commands of pretrain_gpt.py one after the other on the ranks of one torchrun job.

    raw_data_program.py FOLDER, with FOLDER/commands.json: a list of command lines

Each rank writes its exit status of each command to FOLDER/status_RANK.json; rank 0 prints the output.
"""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path

import torch
from thread_counts import threads_after_job

import pretrain_gpt
from mindspeed_llm.devices import apply_patches, rendezvous
from mindspeed_llm.entry_point import run_program
from mindspeed_llm.launcher_environment import read_launcher_environment


def main() -> None:
    folder = Path(sys.argv[1])
    apply_patches("cpu")  # before megatron-core is imported
    from mindspeed_llm.training import process_groups

    launcher_store = rendezvous.launcher_store
    statuses = []
    for number, command in enumerate(json.loads((folder / "commands.json").read_text("utf-8"))):
        threads_after_job()
        # Keys of its own for each command: it must not read the addresses of an earlier one.
        own = functools.partial(torch.distributed.PrefixStore, f"command {number}", launcher_store())
        process_groups.launcher_store = rendezvous.launcher_store = own
        sys.argv = ["pretrain_gpt.py", *command]
        statuses.append(run_program(pretrain_gpt.main, "pretrain_gpt.py"))
    rank = read_launcher_environment().rank
    (folder / f"status_{rank}.json").write_text(json.dumps(statuses), "utf-8")


if __name__ == "__main__":
    main()
