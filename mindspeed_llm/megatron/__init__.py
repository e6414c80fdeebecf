"""Train on packed files inside a Megatron-LM checkout, through the four arguments of `megatron.training.pretrain`.

Megatron's own training runs: its parser, model, optimizer, schedule, logging and checkpoints. Replaced are

    datasets provider   `packed_iterators.py`: micro-batches of our packs in place of GPTDataset
    model provider      `packed_attention_layers.py`: the model of the user's provider, with our attention in its layers
    forward step        `packed_forward_step.py`: the micro-batch with its boundaries in place of get_batch
    flags               `megatron_flags.py`: added to Megatron's parser

`pretrain_patch.py` holds the one patch. What differs between versions of Megatron is in `megatron_versions.py`. No
other package imports this one; importing it does nothing.
"""
