"""Rules between the flags of MindSpeed-LLM's scripts and the flags of this program that mean the same."""

from __future__ import annotations

from mindspeed_llm.arguments.compatibility_arguments import QWEN3_SPEC
from mindspeed_llm.arguments.config_json import LLAMA3_ROPE
from mindspeed_llm.arguments.pretrain_arguments import PretrainArguments
from mindspeed_llm.arguments.rule import Rule


def _constant_rule(name: str, constant: float) -> Rule[PretrainArguments]:
    """Return the rule that a constant of Llama 3.1's rotary frequencies has its published value."""
    flag = "--" + name.replace("_", "-")
    return Rule[PretrainArguments](
        (flag,),
        lambda args: getattr(args.compatibility, name) != constant,
        f"{{{flag}}}: only {constant:g}, as in Llama 3.1 and 3.2, is supported",
    )


RULES = (
    Rule[PretrainArguments](
        ("--spec",),
        lambda args: args.compatibility.spec not in ([], QWEN3_SPEC),
        f"{{--spec}}: not supported; leave it out, because the layers follow from the flags of the model. Accepted is "
        f"{' '.join(QWEN3_SPEC)}",
    ),
    Rule[PretrainArguments](
        ("--spec", "--qk-layernorm"),
        lambda args: args.compatibility.spec == QWEN3_SPEC and not args.model.qk_layernorm,
        "{--spec} is a model with --qk-layernorm; add it, or leave --spec out",
    ),
    Rule[PretrainArguments](
        ("--use-rotary-position-embeddings", "--position-embedding-type"),
        lambda args: args.compatibility.use_rotary_position_embeddings and args.model.learns_positions,
        "--use-rotary-position-embeddings contradicts {--position-embedding-type}; leave one of them out",
    ),
    *(_constant_rule(name, constant) for name, constant in LLAMA3_ROPE.items()),
)
