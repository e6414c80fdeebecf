"""Layout, optimizer, loss, step, evaluation and the one loop.

Importing this package imports megatron.core; an entry point applies the patches of `devices` first.
"""

from mindspeed_llm.training.job import Job, build_job
from mindspeed_llm.training.layout import join_layout, leave_layout
from mindspeed_llm.training.loop import Loop, train
from mindspeed_llm.training.run import run, run_folder

__all__ = ["Job", "Loop", "build_job", "join_layout", "leave_layout", "run", "run_folder", "train"]
