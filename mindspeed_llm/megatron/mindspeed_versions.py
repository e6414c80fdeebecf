"""MindSpeed beside Megatron-LM: the pair of versions that was compared with our own loop, its flags, and its start.

MindSpeed patches Megatron when `mindspeed.megatron_adaptor` is imported, and reads sys.argv for it. Therefore it is
loaded before our patch, and without the flags that turn on its own packing.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from mindspeed_llm.arguments.command_words import value_of
from mindspeed_llm.devices.mindspeed import BRANCH, find_mindspeed, import_adaptor
from mindspeed_llm.errors import ConfigError
from mindspeed_llm.megatron.megatron_flags import OWN_FLAGS, USE_MINDSPEED, names_of
from mindspeed_llm.megatron.refused_flags import CONTEXT_PARALLEL

ADAPTOR = "mindspeed.megatron_adaptor"
# Compared with our own loop; docs/inside-megatron-lm.md quotes the results. Other branches have other numbers.
COMPARED, COMPARED_MEGATRON = "0.16.0", ("0.16.0", "0.16.1")

# Flags that turn on MindSpeed's division of packs at end tokens: it replaces GPTDataset, GPTModel.forward,
# Attention.forward and RotaryEmbedding.forward. Ours mean the same for packs, so MindSpeed does not see them.
OWN_PACKING = ("--reset-attention-mask", "--reset-position-ids")

_OTHER_LAYERS = "MindSpeed replaces the layers that hold our attention; remove the flag"
_OTHER_SCHEDULE = "MindSpeed's schedule was not tried with packs; remove the flag"
_EXPERTS = "only dense models were tried with packs; remove the flag"
_NOT_TRIED = "not tried with packs; remove the flag"
# Flags of MindSpeed that touch packing. Its flags for swap, recomputation and overlap are not among them.
REFUSED: dict[str, str] = {
    "--tp-2d": _OTHER_LAYERS,
    "--unaligned-linear": _OTHER_LAYERS,
    "--use-fusion-attn-v2": "our attention calls the fused kernel itself, with the boundaries; remove the flag",
    "--alibi-fusion-attn-type": "the attention kernels have no alibi; remove the flag, and use rope",
    "--multi-head-latent-attention": _NOT_TRIED,
    "--use-dsa-absorb": _NOT_TRIED,
    "--noop-layers": _OTHER_LAYERS,
    "--schedules-method": _OTHER_SCHEDULE,
    "--moe-fb-overlap": _EXPERTS,
    "--moe-tp-extend-ep": _EXPERTS,
    "--automated-pipeline": _OTHER_SCHEDULE,
    "--use-multiparameter-pipeline-model-parallel": _OTHER_SCHEDULE,
    "--use-nanopipe": _OTHER_SCHEDULE,
    "--dist-train": _OTHER_SCHEDULE,
    "--layerzero": _NOT_TRIED,
    "--auto-settings": "it starts runs of its own to find settings; remove the flag",
    "--ai-framework": "MindSpore was not tried; remove the flag",
    "--use-batch-invariant-ops": _NOT_TRIED,
    "--use-flash-attn-npu-batch-invariant": _NOT_TRIED,
}


def uses_mindspeed(argv: Sequence[str], script: Path | None) -> bool:
    """Whether the run uses MindSpeed: it is loaded, the command line has --use-mindspeed, or the script imports it.

    Args:
        argv: words of the command line.
        script: script that is run; None for an interactive session.
    """
    if ADAPTOR in sys.modules or USE_MINDSPEED in names_of(argv):
        return True
    # Without MindSpeed on the path, the import of the script has its own error, or its own way out.
    return script is not None and importlib.util.find_spec("mindspeed") is not None and _imports_adaptor(script)


def _imports_adaptor(script: Path) -> bool:
    """Whether a script imports MindSpeed's adaptor at its top level, or in a `try` there."""
    try:
        body = ast.parse(script.read_bytes()).body
    except (OSError, SyntaxError, ValueError):
        return False
    return any(ADAPTOR in names for names in _imported_modules(body))


def _imported_modules(body: list[ast.stmt]) -> Iterator[list[str]]:
    for statement in body:
        if isinstance(statement, ast.Import):
            yield [alias.name for alias in statement.names]
        elif isinstance(statement, ast.ImportFrom) and not statement.level:
            yield [f"{statement.module}.{alias.name}" for alias in statement.names] + [str(statement.module)]
        elif isinstance(statement, ast.Try):
            yield from _imported_modules(statement.body)


def load_mindspeed_first(argv: Sequence[str], megatron: str) -> str:
    """Let MindSpeed patch Megatron, without its own packing.

    Args:
        argv: words of the command line.
        megatron: version of megatron-core on the path.

    Returns:
        A message with the version of MindSpeed.

    Raises:
        ConfigError: the versions were not compared, or a flag of MindSpeed touches packing.
        DeviceError: MindSpeed does not load.
    """
    problems = list(_problems(argv, megatron))
    if problems:
        raise ConfigError(problems)
    if ADAPTOR not in sys.modules:
        import_adaptor(flags_for_mindspeed(argv))
    return f"MindSpeed {COMPARED} patched Megatron-LM first"


def _problems(argv: Sequence[str], megatron: str) -> Iterator[str]:
    found = find_mindspeed()
    if found is None:
        yield f"{USE_MINDSPEED}: there is no MindSpeed on the path; put its branch {BRANCH} on PYTHONPATH"
    elif found[0] != COMPARED:
        yield (
            f"{found[1]}: MindSpeed {found[0]} was not tried with packed data; use its branch {BRANCH} ({COMPARED}), "
            "or leave MindSpeed out"
        )
    elif megatron not in COMPARED_MEGATRON:
        yield (
            f"MindSpeed {COMPARED} with Megatron-LM {megatron} was not tried with packed data; use core_v"
            f"{' or core_v'.join(COMPARED_MEGATRON)}, or leave MindSpeed out"
        )
    names = names_of(argv)
    for flag, reason in REFUSED.items():
        if flag in names:
            yield f"{flag}: {reason}"
    # Refused without MindSpeed as well, but MindSpeed's own checks of it would come first.
    if value_of("--context-parallel-size", argv) not in (None, "1"):
        yield f"--context-parallel-size: {CONTEXT_PARALLEL}"
    if ADAPTOR in sys.modules and _has_own_packing():
        yield (
            f"{ADAPTOR} was imported before mindspeed_llm.megatron_adaptor and read {OWN_PACKING[0]}, which turns on "
            "its own packing: make `import mindspeed_llm.megatron_adaptor` the first line, which loads MindSpeed "
            "without that flag"
        )


def _has_own_packing() -> bool:
    """Whether the loaded MindSpeed has turned on its own packing."""
    from mindspeed.args_utils import get_mindspeed_args

    return bool(getattr(get_mindspeed_args(), "reset_attention_mask", False))


def flags_for_mindspeed(argv: Sequence[str]) -> list[str]:
    """Return the command line without our flags and those of MindSpeed's own packing.

    Args:
        argv: words of the command line.
    """
    kept, skips = [], False
    for word in argv:
        if word.startswith("--"):
            skips = word.partition("=")[0] in (*OWN_FLAGS, USE_MINDSPEED, *OWN_PACKING)
        if not skips:
            kept.append(word)
    return kept
