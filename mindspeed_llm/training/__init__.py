"""Layout, optimizer, loss, step, evaluation and the one loop.

Importing this package imports megatron.core; an entry point applies the patches of `devices` first.
"""

from mindspeed_llm.training.process_groups import join_layout, leave_layout

__all__ = ["join_layout", "leave_layout"]
