"""Flags of Megatron that packs do not support, each refused by name."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mindspeed_llm.megatron.megatron_flags import SWITCH, names_of


@dataclass(frozen=True)
class RefusedFlag:
    """A flag of Megatron that packs do not support.

    Attributes:
        flag: the flag, as in the message.
        is_given: whether the parsed arguments have it.
        reason: why, and what to do.
    """

    flag: str
    is_given: Callable[[Namespace], bool]
    reason: str


def _set(name: str) -> Callable[[Namespace], bool]:
    return lambda args: bool(getattr(args, name, None))


def _above_one(name: str) -> Callable[[Namespace], bool]:
    return lambda args: (getattr(args, name, 1) or 1) > 1


def _refused(flag: str, reason: str) -> RefusedFlag:
    return RefusedFlag(flag, _set(flag[2:].replace("-", "_")), reason)


CONTEXT_PARALLEL = (
    "our attention does not divide samples among ranks; use 1, and tensor parallelism with --sequence-parallel"
)
_NOT_TRIED = "not tried with packs; remove the flag"
_OTHER_DATA = f"another kind of data; remove the flag, or {SWITCH}"

REFUSED: tuple[RefusedFlag, ...] = (
    RefusedFlag(
        "--context-parallel-size",
        _above_one("context_parallel_size"),
        CONTEXT_PARALLEL,
    ),
    RefusedFlag("--num-experts", _set("num_experts"), "only dense models were tried with packs; remove the flag"),
    RefusedFlag(
        "--expert-model-parallel-size", _above_one("expert_model_parallel_size"), "only dense models were tried; use 1"
    ),
    RefusedFlag(
        "--transformer-impl",
        lambda args: getattr(args, "transformer_impl", "local") != "local",
        "layers of TransformerEngine were not tried with packs; use --transformer-impl local",
    ),
    RefusedFlag(
        "--attention-dropout",
        lambda args: args.attention_dropout > 0,
        "the attention kernels have no dropout, and Megatron's default is 0.1; use --attention-dropout 0",
    ),
    RefusedFlag("--use-legacy-models", _set("use_legacy_models"), "use the models of megatron.core: remove the flag"),
    _refused("--multi-latent-attention", _NOT_TRIED),
    _refused("--mtp-num-layers", "multi-token prediction does not know sample boundaries; remove the flag"),
    _refused("--experimental-attention-variant", _NOT_TRIED),
    _refused("--heterogeneous-layers-config-path", _NOT_TRIED),
    _refused("--apply-query-key-layer-scaling", "the attention kernels do not scale by layer; remove the flag"),
    _refused("--window-size", "the attention kernels have no sliding window; remove the flag"),
    RefusedFlag(
        "--softmax-type",
        lambda args: getattr(args, "softmax_type", "vanilla") != "vanilla",
        "the attention kernels have the ordinary softmax only; remove the flag",
    ),
    _refused("--qk-clip", "the attention kernels do not return the largest logit; remove the flag"),
    _refused("--log-max-attention-logit", "the attention kernels do not return the largest logit; remove the flag"),
    _refused("--mock-data", _OTHER_DATA),
    _refused("--sft", _OTHER_DATA),
    _refused("--fim-data", _OTHER_DATA),
    _refused("--data-args-path", "give the prefixes with --data-path"),
    _refused("--per-split-data-args-path", "give the prefixes with --train-data-path and --valid-data-path"),
    _refused("--full-validation", "set the number of batches with --eval-iters"),
    _refused("--multiple-validation-sets", "use --valid-data-path with one blend"),
    _refused("--phase-transition-iterations", _NOT_TRIED),
    _refused("--perform-rl-step", _NOT_TRIED),
    _refused("--check-for-spiky-loss", _NOT_TRIED),
    _refused("--use-torch-fsdp2", _NOT_TRIED),
    _refused("--use-megatron-fsdp", _NOT_TRIED),
    _refused("--modelopt-enabled", _NOT_TRIED),
    _refused("--overlap-moe-expert-parallel-comm", "only dense models were tried with packs; remove the flag"),
    RefusedFlag(
        "--cuda-graph-impl",
        lambda args: getattr(args, "cuda_graph_impl", "none") not in (None, "none"),
        "each micro-batch has other boundaries, which a recorded graph cannot follow; remove the flag",
    ),
)


def problems_of_arguments(args: Namespace) -> list[str]:
    """Return one line for each flag that packs do not support.

    Args:
        args: Megatron's parsed arguments.
    """
    problems = [f"{refused.flag}: {refused.reason}" for refused in REFUSED if refused.is_given(args)]
    if not (args.data_path or args.train_data_path):
        problems.append(f"{SWITCH} needs --data-path PREFIX")
    return problems


def problems_of_command(argv: Sequence[str]) -> list[str]:
    """Return what is wrong with a command line before Megatron parses it.

    Args:
        argv: words of the command line.
    """
    names = names_of(argv)
    if "--yaml-cfg" in names:
        return ["--yaml-cfg: Megatron then ignores the command line, and with it our flags; give flags instead"]
    if SWITCH not in names:
        return [f"{SWITCH} is missing: without it Megatron trains on its own data"]
    return []
