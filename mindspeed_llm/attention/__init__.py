"""Block-diagonal causal attention over a stream of packed samples: one contract, one file per kernel.

from mindspeed_llm.attention import choose_kernel
choice = choose_kernel("cpu", torch.float32, head_size=64)
output = choice.kernel(query, key, value, actual_seq_len, softmax_scale)
"""

from mindspeed_llm.attention.kernel_interface import Kernel
from mindspeed_llm.attention.kernel_selection import Choice, choose_kernel, row_bytes

__all__ = ["Choice", "Kernel", "choose_kernel", "row_bytes"]
