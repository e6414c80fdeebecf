"""Define the inputs of a run that are known before its model is built."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mindspeed_llm.arguments.pretrain_arguments import PretrainArguments
from mindspeed_llm.checkpoints import StartPoint
from mindspeed_llm.conversion import ModelAssets
from mindspeed_llm.data import Datasets
from mindspeed_llm.devices import Device
from mindspeed_llm.devices.rendezvous import RankInfo
from mindspeed_llm.lease import HeldLeases
from mindspeed_llm.tokenization import Tokenizer
from mindspeed_llm.training.derived_settings import DerivedSettings
from mindspeed_llm.training.evaluation_callback import EvaluationCallback


@dataclass(frozen=True)
class RunSetup:
    """Inputs of a run. Created once per start, after the start point is known.

    Attributes:
        arguments: checked arguments, with the global batch size of a resumed run.
        device: device of this rank.
        datasets: opened and checked data sets.
        tokenizer: tokenizer that the command names, or None.
        leases: leases of the directories that rank 0 writes to.
        assets: config, tokenizer and chat template that checkpoints carry; on rank 0 only.
        identity: identity of the run; see `checkpoints.compute_identity`.
        start: start point of the run.
        derived: order of the data, length, vocabulary, operators and attention kernel.
        every_rank: information that each rank reported about itself, in the order of ranks.
        run_dir: the run directory.
        on_evaluation: further work at each evaluation, or None.
    """

    arguments: PretrainArguments
    device: Device
    datasets: Datasets
    tokenizer: Tokenizer | None
    leases: HeldLeases
    assets: ModelAssets | None
    identity: dict[str, Any]
    start: StartPoint
    derived: DerivedSettings
    every_rank: list[RankInfo]
    run_dir: Path
    on_evaluation: EvaluationCallback | None = None
