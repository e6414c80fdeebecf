"""What a run is made of, known before its model is built."""

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


@dataclass(frozen=True)
class RunSetup:
    """What a run is made of. Made once for each start, when the place where it starts is known.

    Attributes:
        arguments: with the batch size of the run that is resumed.
        device: where.
        datasets: opened and checked.
        tokenizer: the one that the command names, if any.
        leases: of the folders that rank 0 writes to.
        assets: config, tokenizer and chat template that checkpoints carry, on rank 0.
        identity: of the run; see `checkpoints.identity_of`.
        start: where the run starts.
        derived: order of the data, length, vocabulary, operators and attention kernel.
        every_rank: what each rank reported of itself.
        run_dir: the run folder.
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
