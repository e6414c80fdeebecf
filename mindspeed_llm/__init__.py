"""Fine-tuning of large language models on packed samples, on top of megatron-core.

Importing this package does nothing by itself: no patch, no device call, no reading of sys.argv.
"""

__version__ = "0.1.0"
