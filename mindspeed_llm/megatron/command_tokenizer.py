"""Load the tokenizer that Megatron's flags name, to compare it with the one that made the packs."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from mindspeed_llm.tokenization import Tokenizer, load_tokenizer

# A type that MindSpeed adds to Megatron's, with --tokenizer-name-or-path.
PRETRAINED = "PretrainedFromHF"
HUGGING_FACE, SENTENCE_PIECE = "HuggingFaceTokenizer", ("GPTSentencePieceTokenizer", "Llama2Tokenizer")


def load_megatron_tokenizer(args: Namespace) -> Tokenizer | None:
    """Load the tokenizer of --tokenizer-type, and --tokenizer-model or --tokenizer-name-or-path.

    Args:
        args: Megatron's arguments.

    Returns:
        The tokenizer, or None for a type without files that this project reads, such as NullTokenizer.

    Raises:
        ConfigError: the tokenizer cannot be read.
    """
    kind, model = args.tokenizer_type, args.tokenizer_model
    if kind == PRETRAINED:
        return load_tokenizer(PRETRAINED, args.tokenizer_name_or_path)
    if kind == HUGGING_FACE and model is not None and Path(model).exists():
        return load_tokenizer(PRETRAINED, model)
    if kind in SENTENCE_PIECE and model is not None:
        return load_tokenizer("GPTSentencePieceTokenizer", model=model)
    return None
