"""What a run reads and leaves: checkpoints and logs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from mindspeed_llm.arguments.bounds import COUNT, between
from mindspeed_llm.arguments.resume_policy import FREE, NOTICE, REFUSE


@dataclass
class CheckpointArguments:
    """Checkpoints.

    A run continues from --save whenever that holds a checkpoint of it; --load is where its first start comes from.
    """

    load: str | None = field(default=None, metadata=REFUSE | {"metavar": "DIR"})
    """Checkpoint, or folder of a Hugging Face model, to start from; without it random weights. A Hugging Face folder
    says the shape of its model itself."""
    save: str | None = field(default=None, metadata=FREE | {"metavar": "DIR"})
    """Folder for checkpoints; a run started again continues from it."""
    save_hf: str | None = field(default=None, metadata=FREE | {"metavar": "DIR"})
    """Folder to write the trained model to in Hugging Face's format, at the end of the run; needs --save."""
    save_interval: int | None = field(default=None, metadata=NOTICE | between(1, COUNT))
    """Updates between checkpoints. Without it only the one at the end."""
    keep_last: int | None = field(default=None, metadata=NOTICE | between(1, COUNT))
    """Checkpoints of this run that stay in --save, the newest ones. Without it all."""
    async_save: bool = field(default=False, metadata=NOTICE)
    """Write checkpoints in a process of their own while training goes on; the last one is waited for."""
    finetune: bool = field(default=False, metadata=REFUSE)
    """Take the weights of --load alone and start at update 0."""
    no_load_optim: bool = field(default=False, metadata=NOTICE)
    """Leave the optimizer of --load."""
    no_load_rng: bool = field(default=False, metadata=NOTICE)
    """Leave the random-number state of --load."""
    no_save_optim: bool = field(default=False, metadata=NOTICE)
    """Leave the optimizer out of the last checkpoint; those on the way keep it, so that a run can continue."""
    no_save_rng: bool = field(default=False, metadata=NOTICE)
    """Leave the random-number state out of the last checkpoint."""
    ckpt_format: Literal["torch_dist", "torch"] = field(
        default="torch_dist", metadata=FREE | {"not_built": ("torch_dcp", "fsdp_dtensor")}
    )
    """Format: torch_dist, which loads on any layout. torch is taken for it, with a notice."""
    exit_on_missing_checkpoint: bool = field(default=False, metadata=FREE)
    """End when --load holds no checkpoint: always so here."""


@dataclass
class LoggingArguments:
    """Logging."""

    log_interval: int = field(default=100, metadata=NOTICE | between(1, COUNT))
    """Updates between lines."""
    log_throughput: bool = field(default=False, metadata=FREE)
    """Throughput in every line: always so here."""
    tensorboard_dir: str | None = field(default=None, metadata=FREE | {"metavar": "DIR"})
    """Folder for TensorBoard's logs, beside metrics.jsonl; needs the package tensorboard."""
    swanlab_mode: Literal["local", "offline", "cloud"] | None = field(default=None, metadata=FREE)
    """Log to SwanLab: into the run folder (local, offline) or to its service (cloud); needs the package swanlab."""
    swanlab_project: str | None = field(default=None, metadata=FREE | {"metavar": "NAME"})
    """Project in SwanLab; given alone it means --swanlab-mode local."""
    wandb_project: str | None = field(default=None, metadata=FREE | {"metavar": "NAME"})
    """Log to this project of Weights & Biases, offline, into the run folder; needs the package wandb."""
    wandb_exp_name: str | None = field(default=None, metadata=FREE | {"metavar": "NAME"})
    """Name of the run there."""
    run_dir: str | None = field(default=None, metadata=FREE | {"metavar": "DIR"})
    """Run folder for metrics.jsonl, loss.png and packing.png. Without it run/ inside --save, else runs/TIME."""
