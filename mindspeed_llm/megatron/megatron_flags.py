"""Our flags in Megatron's parser, and the data arguments that they give together with Megatron's own flags."""

from __future__ import annotations

import dataclasses
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence

from mindspeed_llm.arguments.data_arguments import DataArguments

SWITCH = "--is-instruction-dataset"
# Flags of DataArguments that Megatron does not have. The help texts are those of our own parser.
SWITCHES = (SWITCH, "--neat-pack", "--padded-samples", "--no-shuffle")
PROMPT_TYPE = "--prompt-type"
OWN_FLAGS = (*SWITCHES, PROMPT_TYPE)
# Not among OWN_FLAGS: a script may have a flag of this name for its own data.
USE_MINDSPEED = "--use-mindspeed"
# Flags that Megatron has as well, with the same meaning for packs.
SHARED = ("seq_length", "split", "reset_position_ids", "reset_attention_mask")
PATHS = ("data_path", "train_data_path", "valid_data_path", "test_data_path")


def names_of(argv: Sequence[str]) -> set[str]:
    """Return the names of the flags in a command line, without values."""
    return {word.partition("=")[0] for word in argv if word.startswith("--")}


def add_flags(parser: ArgumentParser) -> ArgumentParser:
    """Add our flags to Megatron's parser, and set the defaults that training on packs needs.

    Args:
        parser: Megatron's parser with all of its flags.
    """
    group = parser.add_argument_group(title="packed data of mindspeed_llm")
    known = {option for action in parser._actions for option in action.option_strings}
    for flag in (*OWN_FLAGS, USE_MINDSPEED):
        if flag in known:  # MindSpeed, or the checkout of the user, has a flag of the same name
            continue
        if flag == PROMPT_TYPE:
            group.add_argument(flag, metavar="NAME", help="Chat template that the data were preprocessed with.")
        else:
            group.add_argument(flag, action="store_true", help=_HELP[flag])
    # Not through the args_defaults of `pretrain`, which replace only values that are None.
    parser.set_defaults(calculate_per_token_loss=True, dataloader_type="external")
    return parser


_HELP = {
    SWITCH: "Train on PREFIX_packed_* files, as written by preprocess_data.py.",
    "--neat-pack": "The attention mask of the packs numbers the samples, and each attends only to itself.",
    "--padded-samples": "Round each epoch up to a multiple of the global batch size by repeating packs.",
    "--no-shuffle": "Read each split in the order of its files, without shuffling.",
    USE_MINDSPEED: "Load MindSpeed first, as `import mindspeed.megatron_adaptor` in the script does.",
}


def data_arguments(args: Namespace) -> DataArguments:
    """Build our data arguments from the parsed command line of Megatron.

    Args:
        args: Megatron's arguments.
    """
    fields = {field.name for field in dataclasses.fields(DataArguments)}
    names = [*SHARED, *(flag[2:].replace("-", "_") for flag in OWN_FLAGS)]
    values = {name: getattr(args, name) for name in names if name in fields}
    values.update({name: list(getattr(args, name, None) or []) for name in PATHS})
    return DataArguments(**values)
