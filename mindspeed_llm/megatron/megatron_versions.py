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
COMPARED = ("0.12.1", "0.16.0", "0.16.1", "0.17.1")


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

    @property
    def is_0_12(self) -> bool:
        """Whether this is 0.12.1, the version of MindSpeed-LLM's users."""
        return self.number == "0.12.1"

    @property
    def drops_batch_dimension(self) -> bool:
        """Whether attention squeezes query, key and value to [T, heads, head size] for any packed_seq_params."""
        return self.is_0_12

    @property
    def reads_args_of_checkpoint(self) -> bool:
        """Whether loading a checkpoint without `args` ends with a KeyError, even with --finetune."""
        return self.is_0_12

    def core_attention(self, attention: type) -> Callable[..., torch.nn.Module]:
        """Return the class of the core_attention of a layer.

        Args:
            attention: our core_attention, which takes tensors with a batch dimension.
        """
        return _with_batch_dimension(attention) if self.drops_batch_dimension else attention

    def rotary_angles(self, angles: torch.Tensor) -> torch.Tensor:
        """Return rotary angles in the shape that attention multiplies query and key with.

        Args:
            angles: [T, 1, 1, rotary size].
        """
        return angles.squeeze(1) if self.drops_batch_dimension else angles

    def reported_loss(self, loss: torch.Tensor, count: torch.Tensor) -> Any:
        """Return a loss in the form of Megatron's log.

        Args:
            loss: sum of the losses of a micro-batch, [].
            count: number of its trained tokens, [].

        Returns:
            Tensor [2] of this rank. For 0.12.1 two tensors [], summed over the data-parallel ranks: there the loss
            function of the script has to do it.
        """
        import torch

        both = torch.cat([loss.view(1), count.view(1).to(loss.dtype)])
        if not self.is_0_12:
            return both
        from megatron.core import parallel_state

        torch.distributed.all_reduce(both, group=parallel_state.get_data_parallel_group())
        return both[0], both[1]


def _with_batch_dimension(attention: type) -> type:
    class PackedAttentionWithBatch(attention):
        def forward(
            self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: object, /, **named: Any
        ) -> torch.Tensor:
            with_batch = (tensor.unsqueeze(1) for tensor in (query, key, value))
            result: torch.Tensor = super().forward(*with_batch, mask, **named)
            return result

    return PackedAttentionWithBatch


def find_version() -> MegatronVersion:
    """Find the Megatron-LM on the path of this process, without importing it.

    Raises:
        ConfigError: there is none, it has no megatron.training, two versions are mixed, or the version was not
            compared.
    """
    spec = importlib.util.find_spec("megatron")
    folders = [Path(folder) for folder in (spec.submodule_search_locations or [])] if spec is not None else []
    known = " or ".join(f"core_v{number}" for number in COMPARED)
    core = next((folder for folder in folders if _number_in(folder) is not None), None)
    if core is None:
        raise ConfigError(f"no megatron-core on the path: put a Megatron-LM checkout of {known} on PYTHONPATH")
    number = str(_number_in(core))
    training = next((folder for folder in folders if (folder / "training" / "training.py").is_file()), None)
    if training is None:
        raise ConfigError(
            f"{core}: megatron-core {number} without megatron.training, as PyPI's wheels are to 0.16.1; put a "
            f"Megatron-LM checkout of {known} first on PYTHONPATH"
        )
    if _number_in(training) not in (None, number):
        raise ConfigError(
            f"{training}: megatron.training of {_number_in(training)}, but megatron.core of {number} comes from "
            f"{core}; put the checkout first on PYTHONPATH"
        )
    if number not in COMPARED:
        raise ConfigError(
            f"{core}: Megatron-LM {number} was not tried with packed data; use {known}, or pretrain_gpt.py of "
            "mindspeed_llm, which needs no checkout"
        )
    return MegatronVersion(number)


def _number_in(folder: Path) -> str | None:
    """Return the version of the megatron.core in a folder, or None if there is none."""
    file = folder / "core" / "package_info.py"
    if not file.is_file():
        return None
    text = file.read_text("utf-8")
    parts = [re.search(rf"^{part} = (\d+)$", text, re.M) for part in ("MAJOR", "MINOR", "PATCH")]
    return ".".join(part[1] if part is not None else "?" for part in parts)
