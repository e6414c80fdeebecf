"""Arguments for training: batch size, learning rate schedule, gradient clipping, optimizer, loss and precision.

They also set the length of the run, evaluation and activation recomputation.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from mindspeed_llm.arguments.bounds import AUTO, COUNT, FLOAT32, INT32, SEED, between
from mindspeed_llm.arguments.resume_policy import FREE, NOTICE, REFUSE


@dataclass
class TrainingArguments:
    """Batch size, training length, loss, optimizer, learning rate schedule and precision.

    Exactly one of --train-iters, --train-samples and --train-epochs sets the training length.
    """

    micro_batch_size: int = field(metadata=NOTICE | between(1, 2**20))
    """Number of packs per forward pass on one rank."""
    lr: float = field(metadata=NOTICE | between(0, FLOAT32))
    """Maximum learning rate, reached at the end of the warm-up."""
    global_batch_size: int | None = field(default=None, metadata=NOTICE | between(1, 2**24))
    """Number of packs per update over all ranks. Default: one micro-batch per data-parallel rank; a resumed run keeps
    its batch size, even with another number of ranks."""
    train_iters: int | None = field(default=None, metadata=NOTICE | between(1, COUNT))
    """Number of updates to train for."""
    train_samples: int | None = field(default=None, metadata=NOTICE | between(1, COUNT))
    """Number of packs to train on. An incomplete last batch is skipped."""
    train_epochs: int | None = field(default=None, metadata=NOTICE | between(1, COUNT))
    """Number of passes over the training data."""
    eval_interval: int | None = field(default=None, metadata=NOTICE | between(1, COUNT))
    """Number of updates between evaluations on the validation data. Default: no evaluation during training."""
    eval_iters: int = field(default=100, metadata=NOTICE | between(0, COUNT))
    """Maximum number of global batches per evaluation; 0: no evaluation."""
    early_stopping: int | None = field(default=None, metadata=NOTICE | between(1, COUNT))
    """End the run after so many evaluations in a row without a lower held-out loss."""
    stage: Literal["pretrain", "sft"] | None = field(
        default=None, metadata=REFUSE | {"not_built": ("dpo", "orm", "prm", "simpo", "ray_ppo", "ray_grpo")}
    )
    """Training method: pretraining on every token, or supervised fine-tuning. Default: sft with
    --is-instruction-dataset, else pretrain."""
    loss_normalization: Literal["token", "sample", "micro-batch"] = field(default="token", metadata=REFUSE)
    """How the loss is averaged: over the trained tokens of the global batch (independent of the packing), over its
    samples, or over the token means of its micro-batches, as in Megatron without --calculate-per-token-loss."""
    loss_chunk_size: int = field(default=AUTO, metadata=FREE | between(0, INT32) | {"named": {"auto": AUTO}})
    """Trained tokens whose logits are computed at a time. 0 computes the logits of all slots and keeps them. auto uses
    chunks, or all slots if nearly every token is trained and the logits are small."""
    calculate_per_token_loss: bool = field(default=False, metadata=FREE)
    """Megatron's name for --loss-normalization token, which is the default."""
    lr_decay_style: Literal["constant", "linear", "cosine", "inverse-square-root", "WSD"] = field(
        default="linear", metadata=NOTICE
    )
    """Shape of the learning rate schedule after the warm-up. WSD (warm-up, stable, decay) keeps --lr until the last
    --lr-wsd-decay-iters updates."""
    lr_decay_iters: int | None = field(default=None, metadata=NOTICE | between(1, COUNT))
    """Number of updates after which the learning rate is --min-lr. Default: the complete run."""
    lr_decay_samples: int | None = field(default=None, metadata=NOTICE | between(1, COUNT))
    """Number of packs or blocks after which the learning rate is --min-lr; with --train-samples or --train-epochs."""
    lr_wsd_decay_style: Literal["exponential", "linear", "cosine", "minus_sqrt"] = field(
        default="exponential", metadata=NOTICE
    )
    """Shape of the last part of WSD."""
    lr_wsd_decay_iters: int | None = field(default=None, metadata=NOTICE | between(1, COUNT))
    """Length of the last part of WSD, in updates."""
    lr_wsd_decay_samples: int | None = field(default=None, metadata=NOTICE | between(1, COUNT))
    """Length of the last part of WSD, in packs or blocks; with --train-samples or --train-epochs."""
    lr_warmup_fraction: float | None = field(default=None, metadata=NOTICE | {"minimum": 0, "below": 1})
    """Length of the warm-up, in which the learning rate rises from 0, as a fraction of the decay length."""
    lr_warmup_iters: int = field(default=0, metadata=NOTICE | between(0, COUNT))
    """Length of the warm-up, in which the learning rate rises from 0, in updates."""
    lr_warmup_samples: int = field(default=0, metadata=NOTICE | between(0, COUNT))
    """Length of the warm-up, in which the learning rate rises from 0, in packs or blocks; with --train-samples or
    --train-epochs."""
    use_checkpoint_scheduler: bool = field(
        default=False, metadata=FREE | {"name": "use-checkpoint-opt_param-scheduler"}
    )
    """On resume, take learning rate, schedule and weight decay from the checkpoint instead of the flags."""
    override_scheduler: bool = field(default=False, metadata=FREE | {"name": "override-opt_param-scheduler"})
    """On resume, take learning rate, schedule and weight decay from the flags. This is the default."""
    min_lr: float = field(default=0.0, metadata=NOTICE | between(0, FLOAT32))
    """Minimum learning rate after the warm-up."""
    weight_decay: float = field(default=0.01, metadata=NOTICE | between(0, FLOAT32))
    """Weight decay of AdamW. Not applied to biases and one-dimensional weights."""
    clip_grad: float = field(default=1.0, metadata=NOTICE | between(0, FLOAT32))
    """Gradient clipping: maximum norm of the gradient over all parameters; 0: no clipping."""
    adam_beta1: float = field(default=0.9, metadata=REFUSE | {"minimum": 0, "below": 1})
    """AdamW's beta1, the decay rate of the running mean of gradients."""
    adam_beta2: float = field(default=0.999, metadata=REFUSE | {"minimum": 0, "below": 1})
    """AdamW's beta2, the decay rate of the running mean of squared gradients."""
    adam_eps: float = field(default=1e-8, metadata=REFUSE | {"above": 0, "maximum": FLOAT32})
    """AdamW's epsilon."""
    skip_bad_steps: int = field(default=0, metadata=NOTICE | between(0, COUNT))
    """Maximum number of steps per start that are skipped because their loss or gradient is not finite. The next such
    step ends the run."""
    bf16: bool = field(default=False, metadata=REFUSE)
    """Use bfloat16 for weights and activations, and float32 for gradients and optimizer state."""
    fp16: bool = field(default=False, metadata=REFUSE)
    """Use float16 with loss scaling for weights and activations, and float32 for the optimizer state."""
    initial_loss_scale: float = field(default=2.0**32, metadata=NOTICE | {"above": 0, "maximum": FLOAT32})
    """Initial loss scale with --fp16. The scale is adjusted dynamically."""
    seed: int = field(default=1234, metadata=REFUSE | between(1, SEED))
    """Seed for initial weights, dropout and the order of the data."""
    recompute_granularity: Literal["full", "selective"] | None = field(default=None, metadata=NOTICE)
    """Activation recomputation in the backward pass: complete layers (full) or only attention (selective)."""
    recompute_method: Literal["uniform", "block"] | None = field(default=None, metadata=NOTICE)
    """With --recompute-granularity full: store only the input of each group of --recompute-num-layers layers (uniform),
    or recompute only the first --recompute-num-layers layers of a pipeline stage (block)."""
    recompute_num_layers: int | None = field(default=None, metadata=NOTICE | between(1, 10_000))
    """Number of layers per group (uniform) or per pipeline stage (block); see --recompute-method."""
    recompute_activations: bool = field(default=False, metadata=NOTICE)
    """Same as --recompute-granularity selective."""
    recompute_activation_function: bool = field(default=False, metadata=NOTICE)
    """Recompute the output of the MLP's activation function in the backward pass, in the layers that are not recomputed
    completely. Without --recompute-num-layers, --recompute-granularity full then recomputes no complete layer."""
    recompute_activation_function_num_layers: int | None = field(default=None, metadata=NOTICE | between(1, 10_000))
    """Number of layers per pipeline stage, or per virtual stage, to which --recompute-activation-function applies.
    Default: all that are not recomputed completely."""

    @property
    def precision(self) -> Literal["fp32", "bf16", "fp16"]:
        """Precision of weights and activations."""
        return "bf16" if self.bf16 else "fp16" if self.fp16 else "fp32"

    @property
    def recompute(self) -> Literal["full", "selective"] | None:
        """Granularity of activation recomputation, from either flag; None if it is off."""
        if self.recompute_activations:
            return "selective"
        return None if self.recomputes_no_complete_layer else self.recompute_granularity

    @property
    def recomputes_no_complete_layer(self) -> bool:
        """Whether --recompute-granularity full recomputes no complete layer, but only activation functions."""
        return (
            self.recompute_granularity == "full"
            and self.recompute_method == "block"
            and self.recompute_num_layers is None
            and self.recompute_activation_function
        )

    def recomputes_activation_function(self, layer: int) -> bool:
        """Return whether the activation function of a layer is recomputed in the backward pass.

        Args:
            layer: index of the layer in its model chunk.
        """
        # The layers of --recompute-num-layers are recomputed completely.
        first = self.recompute_num_layers or 0
        count = self.recompute_activation_function_num_layers
        return self.recompute_activation_function and first <= layer and (count is None or layer < first + count)

    def default_global_batch_size(self, data_parallel_size: int) -> int:
        """Return the number of packs per update over all ranks, without regard to a resumed run.

        Args:
            data_parallel_size: number of data-parallel ranks.
        """
        return self.global_batch_size or self.micro_batch_size * data_parallel_size
