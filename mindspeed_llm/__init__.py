"""Fine-tuning of large language models on packed samples, on top of megatron-core.

Importing this package has no side effects: it applies no patches, makes no device calls and does not read sys.argv.
"""

__version__ = "0.1.0"
