"""Replace get_batch: run one micro-batch of packs through a model chunk, with boundaries on every pipeline stage."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from megatron.core.rerun_state_machine import get_rerun_state_machine

from mindspeed_llm.data import MicroBatch
from mindspeed_llm.megatron.megatron_versions import MegatronVersion
from mindspeed_llm.model import PackedBoundaries


class PackedForwardStep:
    """The forward step that `megatron.training.pretrain` takes.

    Args:
        version: version of Megatron.
    """

    def __init__(self, version: MegatronVersion) -> None:
        self.version = version

    def __call__(self, data_iterator: Iterator[MicroBatch], model: torch.nn.Module) -> tuple[torch.Tensor, Any]:
        """Run the next micro-batch.

        Args:
            data_iterator: iterator from `build_iterators`.
            model: model chunk, wrapped by Megatron.

        Returns:
            The loss of every slot [1, T] on the last pipeline stage, hidden states [T, 1, hidden size] on the others;
            and the loss function for it.
        """
        from megatron.training import get_args, get_timers

        timers = get_timers()
        timers("batch-generator", log_level=2).start()
        batch = next(data_iterator).to(next(model.parameters()).device)
        timers("batch-generator").stop()
        boundaries = PackedBoundaries(actual_seq_len=batch.actual_seq_len, positions=batch.positions)
        output = model(batch.tokens, batch.positions[None, :], None, labels=batch.labels, packed_seq_params=boundaries)
        return output, partial(self._loss, batch, get_args().check_for_nan_in_loss_and_grad)

    def _loss(
        self, batch: MicroBatch, checks: bool, losses: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
        """Return loss sum [] and number of trained tokens [] of a micro-batch, and both for Megatron's log.

        Megatron divides loss and gradients by the number of trained tokens of the global batch.

        Args:
            batch: the micro-batch.
            checks: whether a loss that is not finite ends the run.
            losses: loss of every slot [1, T].
        """
        assert batch.loss_weights is not None and batch.loss_denominator is not None
        # The label of an untrained slot is 0, a valid id, so its loss is finite as well.
        loss = (losses.float() * batch.loss_weights).sum()
        count = torch.tensor(batch.loss_denominator, dtype=torch.int, device=loss.device)
        if checks:
            for test, name in ((torch.isnan, "NaN"), (torch.isinf, "Inf")):
                get_rerun_state_machine().validate_result(
                    result=loss,
                    rejection_func=test,
                    message=f"found {name} in local forward loss calculation",
                    tolerance=0.0,
                    fatal=True,
                )
        return loss, count, {"lm loss": self.version.reported_loss(loss.detach().clone(), count)}
