"""Block-diagonal causal attention over a stream of packed samples: one interface, one module per kernel.

Example::

    from mindspeed_llm.attention import select_kernel

    choice = select_kernel("cpu", torch.float32, head_size=64)
    output = choice.kernel(query, key, value, actual_seq_len, softmax_scale)
"""

from mindspeed_llm.attention.kernel_interface import AttentionKernel
from mindspeed_llm.attention.kernel_selection import KernelChoice, saved_bytes_per_row, select_kernel

__all__ = ["AttentionKernel", "KernelChoice", "saved_bytes_per_row", "select_kernel"]
