"""The one patch of this package: `megatron.training.pretrain` with four of its arguments replaced."""

from __future__ import annotations

import functools
import inspect
import sys
from typing import Any, NoReturn

from mindspeed_llm.devices import DEVICES
from mindspeed_llm.devices.patch import Patch
from mindspeed_llm.entry_point import run_program
from mindspeed_llm.errors import ConfigError, UserError
from mindspeed_llm.megatron.megatron_versions import COMPARED, MegatronVersion
from mindspeed_llm.megatron.mindspeed_versions import ADAPTOR, COMPARED_MEGATRON
from mindspeed_llm.megatron.mindspeed_versions import COMPARED as MINDSPEED


def pretrain_patch(version: MegatronVersion, with_mindspeed: bool = False) -> Patch:
    """Return the patch for a version of Megatron.

    Args:
        version: the version on the path.
        with_mindspeed: whether MindSpeed has patched it.
    """
    return Patch(
        target="megatron.training.pretrain, megatron.training.training.pretrain",
        reason="a Megatron-LM script trains on packed files after one import line; its call of `pretrain` has the "
        "providers of GPTDataset, and a get_batch without sample boundaries on the middle pipeline stages",
        versions=f"Megatron-LM {', '.join(COMPARED)}; MindSpeed {MINDSPEED} beside {' and '.join(COMPARED_MEGATRON)}",
        remove_when="the script itself passes our providers, or Megatron's own packing gives every pipeline stage "
        "the boundaries and keeps its arguments from release to release",
        kinds=frozenset(DEVICES),
        before_import=False,
        apply=lambda _: replace_pretrain(version, with_mindspeed),
    )


def replace_pretrain(version: MegatronVersion, with_mindspeed: bool) -> None:
    """Let `megatron.training.pretrain` train on the packs of the command line.

    Args:
        version: version of Megatron.
        with_mindspeed: whether MindSpeed has patched it.
    """
    import megatron.training
    import megatron.training.training

    from mindspeed_llm.megatron.packed_run import PackedRun

    original = megatron.training.training.pretrain
    signature = inspect.signature(original)

    @functools.wraps(original)
    def pretrain(*positional: Any, **named: Any) -> Any:
        call = signature.bind(*positional, **named)
        PackedRun(version, call.arguments)
        try:
            check_order(with_mindspeed)
            return original(*call.args, **call.kwargs)
        except UserError as error:
            end_with(error)

    megatron.training.training.pretrain = pretrain
    megatron.training.pretrain = pretrain


def check_order(with_mindspeed: bool) -> None:
    """Check that MindSpeed was not loaded after our patch.

    Args:
        with_mindspeed: whether MindSpeed was loaded before it.

    Raises:
        ConfigError: it was loaded later, and has read all flags.
    """
    if ADAPTOR in sys.modules and not with_mindspeed:
        raise ConfigError(
            f"{ADAPTOR} was imported after mindspeed_llm.megatron_adaptor had prepared Megatron without it: import it "
            "at the top level of the script itself, or add --use-mindspeed to the command"
        )


def end_with(error: UserError) -> NoReturn:
    """Print an error of the user as one line for each problem, and end the process with its status.

    Args:
        error: the error.
    """

    def fail() -> None:
        raise error

    sys.exit(run_program(fail, "mindspeed_llm.megatron"))
