"""Versions of Megatron-LM: which were compared with our own loop, and everything that differs between them."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mindspeed_llm.errors import ConfigError

if TYPE_CHECKING:
    import torch

# Compared with our own loop; docs/inside-megatron-lm.md quotes the results.
COMPARED = ("0.16.1", "0.17.1")


@dataclass(frozen=True)
class MegatronVersion:
    """One version of Megatron-LM.

    Attributes:
        number: the version of megatron-core in it, such as '0.17.1'.
    """

    number: str

    @property
    def providers(self) -> dict[str, str]:
        """Names of the replaced parameters of `megatron.training.pretrain`."""
        return {
            "datasets": "train_valid_test_dataset_provider",
            "model": "model_provider",
            "forward": "forward_step_func",
            "flags": "extra_args_provider",
        }

    def core_attention(self, attention: type) -> Callable[..., torch.nn.Module]:
        """Return the class of the core_attention of a layer."""
        return attention

    def reported_loss(self, loss: torch.Tensor, count: torch.Tensor) -> Any:
        """Return a loss in the form of Megatron's log.

        Args:
            loss: sum of the losses of a micro-batch, [].
            count: number of its trained tokens, [].

        Returns:
            [2].
        """
        import torch

        return torch.cat([loss.view(1), count.view(1).to(loss.dtype)])


def find_version() -> MegatronVersion:
    """Find the Megatron-LM on the path of this process, without importing it.

    Raises:
        ConfigError: there is none, it has no megatron.training, or its version was not compared.
    """
    spec = importlib.util.find_spec("megatron")
    folders = [Path(folder) for folder in (spec.submodule_search_locations or [])] if spec is not None else []
    cores = [folder for folder in folders if (folder / "core" / "package_info.py").is_file()]
    if not cores:
        raise ConfigError("megatron-core is not on the path: put the Megatron-LM checkout on PYTHONPATH")
    core = cores[0]
    text = (core / "core" / "package_info.py").read_text("utf-8")
    number = ".".join(re.search(rf"^{part} = (\d+)$", text, re.M)[1] for part in ("MAJOR", "MINOR", "PATCH"))  # type: ignore[index]
    trainings = [folder for folder in folders if (folder / "training" / "training.py").is_file()]
    if not trainings:
        raise ConfigError(
            f"{core}: megatron-core {number} without megatron.training; put a Megatron-LM checkout of "
            f"{' or '.join('core_v' + known for known in COMPARED)} first on PYTHONPATH"
        )
    if number not in COMPARED:
        raise ConfigError(
            f"{core}: Megatron-LM {number} was not tried with packed data; use {' or '.join(COMPARED)}, "
            "or pretrain_gpt.py of mindspeed_llm, which needs no checkout"
        )
    return MegatronVersion(number)
