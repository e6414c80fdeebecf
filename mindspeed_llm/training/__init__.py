"""Layout, optimizer, loss, step, evaluation and the one loop.

Importing this package imports megatron.core; an entry point applies the patches of `devices` first.
"""

from mindspeed_llm.training.process_groups import destroy_process_groups, init_distributed

__all__ = ["destroy_process_groups", "init_distributed"]
