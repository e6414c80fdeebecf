"""What a run is made of, known before its model is built."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mindspeed_llm.arguments.pretrain_arguments import PretrainArguments
from mindspeed_llm.checkpoints import Start
from mindspeed_llm.conversion import Companions
from mindspeed_llm.data import Datasets
from mindspeed_llm.devices import Device
from mindspeed_llm.devices.rendezvous import Facts
from mindspeed_llm.lease import Leases
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
        companions: config, tokenizer and chat template that checkpoints carry, on rank 0.
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
    leases: Leases
    companions: Companions | None
    identity: dict[str, Any]
    start: Start
    derived: DerivedSettings
    every_rank: list[Facts]
    run_dir: Path
