"""Train a model: process groups, optimizer, training step, evaluation, checkpoints and the training loop.

Importing this package imports megatron.core. The entry point must apply the patches of `devices` before.
"""

from mindspeed_llm.training.process_groups import destroy_process_groups, init_distributed

__all__ = ["destroy_process_groups", "init_distributed"]
