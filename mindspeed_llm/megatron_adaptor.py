"""Let a Megatron-LM script train on packed files: `import mindspeed_llm.megatron_adaptor` as its first line.

This import is an entry point of a user, and the one exception to the rule that importing this project changes nothing.
It replaces `megatron.training.pretrain` if the command line has one of our flags, such as --is-instruction-dataset;
otherwise it does nothing. docs/inside-megatron-lm.md describes it.
"""

import sys

from mindspeed_llm.megatron.activation import activate

activate(sys.argv[1:])
