"""Steps, batches, loss, optimizer, schedule, precision and recomputation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from mindspeed_llm.arguments.bounds import COUNT, FLOAT32, SEED, between
from mindspeed_llm.arguments.resume_policy import FREE, NOTICE, REFUSE


@dataclass
class TrainingArguments:
    """Training.

    One of --train-iters, --train-samples and --train-epochs says how long.
    """

    micro_batch_size: int = field(metadata=NOTICE | between(1, 2**20))
    """Packs of one forward pass on one rank."""
    lr: float = field(metadata=NOTICE | between(0, FLOAT32))
    """Highest learning rate, reached at the end of the warm-up."""
    global_batch_size: int | None = field(default=None, metadata=NOTICE | between(1, 2**24))
    """Packs of one update over all ranks. Without it one micro-batch for each data-parallel rank; a run that is resumed
    keeps the size that it has, also on another number of ranks."""
    train_iters: int | None = field(default=None, metadata=NOTICE | between(1, COUNT))
    """Updates."""
    train_samples: int | None = field(default=None, metadata=NOTICE | between(1, COUNT))
    """Packs to train on; an incomplete last batch is left out."""
    train_epochs: int | None = field(default=None, metadata=NOTICE | between(1, COUNT))
    """Passes over the training data."""
    eval_interval: int | None = field(default=None, metadata=NOTICE | between(1, COUNT))
    """Updates between evaluations on the validation data. Without it none during training."""
    eval_iters: int = field(default=100, metadata=NOTICE | between(0, COUNT))
    """Batches of one evaluation; 0: no evaluation."""
    stage: Literal["sft"] = field(
        default="sft", metadata=REFUSE | {"not_built": ("dpo", "orm", "prm", "simpo", "ray_ppo", "ray_grpo")}
    )
    """Kind of training: supervised fine-tuning."""
    loss_normalization: Literal["token", "sample", "micro-batch"] = field(default="token", metadata=REFUSE)
    """What the loss is a mean of: trained tokens of the global batch (however they are packed), its samples, or
    micro-batches of their token means as Megatron does without --calculate-per-token-loss."""
    calculate_per_token_loss: bool = field(default=False, metadata=FREE)
    """Megatron's name for --loss-normalization token, the default here."""
    lr_decay_style: Literal["constant", "linear", "cosine", "inverse-square-root"] = field(
        default="linear", metadata=NOTICE | {"not_built": ("WSD",)}
    )
    """Course of the learning rate after the warm-up."""
    lr_decay_iters: int | None = field(default=None, metadata=NOTICE | between(1, COUNT))
    """Updates until the learning rate is at --min-lr. Without it all of them."""
    lr_warmup_fraction: float | None = field(default=None, metadata=NOTICE | {"minimum": 0, "below": 1})
    """Share of the decay in which the learning rate rises from 0."""
    lr_warmup_iters: int = field(default=0, metadata=NOTICE | between(0, COUNT))
    """Updates in which the learning rate rises from 0."""
    min_lr: float = field(default=0.0, metadata=NOTICE | between(0, FLOAT32))
    """Lowest learning rate after the warm-up."""
    weight_decay: float = field(default=0.01, metadata=NOTICE | between(0, FLOAT32))
    """Weight decay of AdamW; none for biases and one-dimensional weights."""
    clip_grad: float = field(default=1.0, metadata=NOTICE | between(0, FLOAT32))
    """Largest norm of the whole gradient; 0: no clipping."""
    adam_beta1: float = field(default=0.9, metadata=REFUSE | {"minimum": 0, "below": 1})
    """Decay of AdamW's mean of gradients."""
    adam_beta2: float = field(default=0.999, metadata=REFUSE | {"minimum": 0, "below": 1})
    """Decay of AdamW's mean of squared gradients."""
    adam_eps: float = field(default=1e-8, metadata=REFUSE | {"above": 0, "maximum": FLOAT32})
    """AdamW's epsilon."""
    skip_bad_steps: int = field(default=0, metadata=NOTICE | between(0, COUNT))
    """Steps of a start whose loss or gradient is not finite that are skipped; one more ends the run."""
    bf16: bool = field(default=False, metadata=REFUSE)
    """Weights and activations in bfloat16, gradients and optimizer in float32."""
    fp16: bool = field(default=False, metadata=REFUSE)
    """Weights and activations in float16 with loss scaling, optimizer in float32."""
    initial_loss_scale: float = field(default=2.0**32, metadata=NOTICE | {"above": 0, "maximum": FLOAT32})
    """First loss scale with --fp16; it adapts from there."""
    seed: int = field(default=1234, metadata=REFUSE | between(1, SEED))
    """Seed of weights, dropout and the order of the data."""
    recompute_granularity: Literal["full", "selective"] | None = field(default=None, metadata=NOTICE)
    """Compute again in the backward pass: whole layers (full) or attention alone (selective)."""
    recompute_method: Literal["uniform", "block"] | None = field(default=None, metadata=NOTICE)
    """With full: keep the input of each group of --recompute-num-layers layers (uniform), or compute again the first
    --recompute-num-layers of a stage (block)."""
    recompute_num_layers: int | None = field(default=None, metadata=NOTICE | between(1, 10_000))
    """Layers of a group, or of a stage; see --recompute-method."""
    recompute_activations: bool = field(default=False, metadata=NOTICE)
    """The same as --recompute-granularity selective."""

    @property
    def precision(self) -> Literal["fp32", "bf16", "fp16"]:
        return "bf16" if self.bf16 else "fp16" if self.fp16 else "fp32"

    @property
    def recompute(self) -> Literal["full", "selective"] | None:
        """What is computed again in the backward pass, by either flag."""
        return "selective" if self.recompute_activations else self.recompute_granularity

    def global_batch(self, data_parallel_size: int) -> int:
        """Packs of one update."""
        return self.global_batch_size or self.micro_batch_size * data_parallel_size
