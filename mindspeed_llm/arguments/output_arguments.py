"""Arguments for checkpoints and logging."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from mindspeed_llm.arguments.bounds import COUNT, between
from mindspeed_llm.arguments.resume_policy import FREE, NOTICE, REFUSE
from mindspeed_llm.families import model_type_names


@dataclass
class CheckpointArguments:
    """Checkpoints.

    If --save contains a checkpoint of the run, the run resumes from it. --load is used at the first start only.
    """

    load: str | None = field(default=None, metadata=REFUSE | {"metavar": "DIR"})
    """Checkpoint directory or Hugging Face folder to start from. A Hugging Face folder needs no flags for the model
    architecture. Default: random weights."""
    hf_config_path: str | None = field(default=None, metadata=FREE | {"metavar": "DIR"})
    """Folder with the config.json of a Hugging Face model: the shape of a model with random weights. Needs no flags for
    the model architecture and no weights."""
    enable_hf2mg_convert: bool = field(default=False, metadata=FREE)
    """--load is a Hugging Face folder: a checkpoint is refused. The weights are read directly with and without this
    flag, and no converted checkpoint is written."""
    model_type_hf: str | None = field(default=None, metadata=FREE | {"choices": model_type_names()})
    """Model type, which must match the config.json of --load. llama2 matches every model, as in MindSpeed-LLM."""
    save: str | None = field(default=None, metadata=FREE | {"metavar": "DIR"})
    """Directory for checkpoints. A run that is started again resumes from it."""
    save_hf: str | None = field(default=None, metadata=FREE | {"metavar": "DIR"})
    """Directory for the trained model in Hugging Face format, written at the end of the run. Needs --save."""
    save_hf_merged: str | None = field(default=None, metadata=FREE | {"metavar": "DIR"})
    """Directory for the base model with the trained adapter merged into it, in Hugging Face format, written at the
    end of the run. --save-hf contains the adapter alone, as a folder of peft. Needs --save."""
    no_save_model: bool = field(default=False, metadata=FREE)
    """Accept a command without --save, whose trained model is lost at the end: for benchmarks and tests."""
    save_hf_interval: int | None = field(default=None, metadata=NOTICE | between(1, COUNT))
    """Number of updates between exports of a checkpoint to SAVE/hf/iter_N, in Hugging Face format (a folder of peft for
    an adapter). A multiple of --save-interval. --keep-last applies to these folders as well."""
    save_interval: int | None = field(default=None, metadata=NOTICE | between(1, COUNT))
    """Number of updates between checkpoints. Default: only one checkpoint at the end."""
    keep_last: int | None = field(default=None, metadata=NOTICE | between(1, COUNT))
    """Number of checkpoints of this run to keep in --save; older ones are deleted. Default: keep all."""
    best_checkpoint: bool = field(default=False, metadata=NOTICE)
    """Save a checkpoint at every evaluation with the lowest held-out loss so far, and never let --keep-last remove it.
    --save-hf then exports this checkpoint instead of the last one."""
    async_save: bool = field(default=False, metadata=NOTICE)
    """Write checkpoints in a background process during training. The run waits for the last one."""
    finetune: bool = field(default=False, metadata=REFUSE)
    """Load only the weights of --load and start at update 0."""
    no_load_optim: bool = field(default=False, metadata=NOTICE)
    """Do not load the optimizer state of --load."""
    no_load_rng: bool = field(default=False, metadata=NOTICE)
    """Do not load the random number generator (RNG) state of --load."""
    no_save_optim: bool = field(default=False, metadata=NOTICE)
    """Do not save the optimizer state in the last checkpoint. Earlier ones contain it, so that a run can resume."""
    no_save_rng: bool = field(default=False, metadata=NOTICE)
    """Do not save the random number generator (RNG) state in the last checkpoint."""
    ckpt_format: Literal["torch_dist", "torch"] = field(
        default="torch_dist", metadata=FREE | {"not_built": ("torch_dcp", "fsdp_dtensor")}
    )
    """Checkpoint format: torch_dist, which loads on any layout. torch is treated as torch_dist, with a notice."""
    exit_on_missing_checkpoint: bool = field(default=False, metadata=FREE)
    """Accepted for compatibility: a --load without a checkpoint is always an error."""


@dataclass
class LoggingArguments:
    """Logging."""

    log_interval: int | None = field(default=None, metadata=NOTICE | between(1, COUNT))
    """Number of updates between log lines. Default: 100, but at least ten lines per epoch and per run."""
    log_throughput: bool = field(default=False, metadata=FREE)
    """Accepted for compatibility: every log line contains the throughput."""
    tensorboard_dir: str | None = field(default=None, metadata=FREE | {"metavar": "DIR"})
    """Directory for TensorBoard logs, in addition to metrics.jsonl. Needs the package tensorboard."""
    swanlab_mode: Literal["local", "offline", "cloud"] | None = field(default=None, metadata=FREE)
    """Log to SwanLab: into the run directory (local, offline) or to its service (cloud). Needs the package swanlab."""
    swanlab_project: str | None = field(default=None, metadata=FREE | {"metavar": "NAME"})
    """Project name in SwanLab. Without --swanlab-mode it implies --swanlab-mode local."""
    wandb_project: str | None = field(default=None, metadata=FREE | {"metavar": "NAME"})
    """Project name in Weights & Biases. Logs are written offline into the run directory. Needs the package wandb."""
    wandb_exp_name: str | None = field(default=None, metadata=FREE | {"metavar": "NAME"})
    """Name of the run in Weights & Biases."""
    run_dir: str | None = field(default=None, metadata=FREE | {"metavar": "DIR"})
    """Run directory for metrics.jsonl, loss.png and packing.png. Default: run/ in --save, or runs/TIME without it."""
