"""What convert_ckpt.py is told, in the spelling of MindSpeed-LLM 2.x."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from mindspeed_llm.arguments.bounds import RANKS, between
from mindspeed_llm.arguments.dataclass_parser import parse_groups
from mindspeed_llm.families import model_type_names

PROGRAM = "convert_ckpt.py"
DESCRIPTION = "Convert weights between Hugging Face's format and megatron-core's."


@dataclass
class ConvertArguments:
    """Conversion.

    What a model looks like is read from its config.json; flags of MindSpeed-LLM that say it again are accepted.
    """

    load_dir: str = field(metadata={"metavar": "DIR"})
    """What to convert."""
    save_dir: str = field(metadata={"metavar": "DIR"})
    """Where to. From mg to hf: an empty or new folder; or that of the original Hugging Face model, as in MindSpeed-LLM,
    which then gets a folder mg2hf."""
    load_model_type: Literal["hf", "mg"] = "hf"
    """Format of --load-dir: Hugging Face or megatron-core."""
    save_model_type: Literal["hf", "mg"] = "mg"
    """Format of --save-dir."""
    model_type_hf: str | None = field(default=None, metadata={"choices": model_type_names()})
    """Kind of model; config.json decides and must fit. llama2 stands for all of them, as in MindSpeed-LLM."""
    hf_dir: str | None = field(default=None, metadata={"metavar": "DIR", "flags": ("--hf-cfg-dir", "--hf-config-path")})
    """From mg to hf: folder with the model's config.json and tokenizer. Without it --save-dir's or the checkpoint's
    own."""
    target_tensor_parallel_size: int = field(default=1, metadata=between(1, RANKS))
    """Tensor-parallel ranks, for --ckpt-format torch; torch_dist loads on any layout."""
    target_pipeline_parallel_size: int = field(default=1, metadata=between(1, RANKS))
    """Pipeline stages, for --ckpt-format torch."""
    ckpt_format: Literal["torch_dist", "torch"] = "torch_dist"
    """Format of megatron-core to write: torch_dist, or the older torch with a file for each rank. Either is read."""
    params_dtype: Literal["bf16", "fp16", "fp32"] | None = None
    """Type of the weights. Without it that of --load-dir."""
    make_vocab_size_divisible_by: int = field(default=1, metadata=between(1, 2**16))
    """For --ckpt-format torch: the vocabulary is padded to a multiple of this times the tensor-parallel size."""
    use_mcore_models: bool = False
    """Accepted; models are megatron-core's in any case."""
    model_type: Literal["GPT"] = "GPT"
    """Accepted; there are no others."""
    loader: str | None = None
    """Accepted; --load-model-type decides."""
    saver: str | None = None
    """Accepted; --save-model-type decides."""
    add_qkv_bias: bool = False
    """Accepted; config.json decides."""
    tokenizer_model: str | None = field(default=None, metadata={"metavar": "PATH"})
    """Accepted; the vocabulary's size is in config.json."""
    spec: list[str] = field(default_factory=list)
    """Accepted; config.json decides."""


def parse_convert_arguments(argv: Sequence[str]) -> ConvertArguments:
    """The arguments of convert_ckpt.py.

    Raises:
        ConfigError: everything that is wrong with the command line, one line each.
    """
    (arguments,) = parse_groups(argv, [ConvertArguments], PROGRAM, DESCRIPTION)
    assert isinstance(arguments, ConvertArguments)
    return arguments
