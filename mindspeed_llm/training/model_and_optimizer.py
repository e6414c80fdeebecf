"""Build model, optimizer and learning rate schedule of this rank."""

from __future__ import annotations

import weakref
from dataclasses import dataclass

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.optimizer import (
    MegatronOptimizer,
    OptimizerConfig,
    ParamGroupOverride,
    ParamKey,
    get_megatron_optimizer,
    get_standard_config_overrides,
)
from megatron.core.transformer.module import Float16Module
from megatron.core.transformer.transformer_config import TransformerConfig

from mindspeed_llm.adapters import AdapterRecord, AdapterSettings, BaseModel
from mindspeed_llm.arguments.parallel_arguments import ParallelArguments
from mindspeed_llm.arguments.pretrain_arguments import PretrainArguments
from mindspeed_llm.arguments.training_arguments import TrainingArguments
from mindspeed_llm.checkpoints import TrainingState
from mindspeed_llm.devices import Device
from mindspeed_llm.model import build_model, transformer_config
from mindspeed_llm.model.transformer_config import DTYPES
from mindspeed_llm.training.derived_settings import DerivedSettings
from mindspeed_llm.training.learning_rate_schedule import LearningRateSchedule, build_scheduler
from mindspeed_llm.tuning import FACTOR_B_NAMES, adapted_modules, freeze_base, initialize_adapter, virtual_tokens_of


@dataclass
class ModelAndOptimizer:
    """Model, optimizer and learning rate schedule of this rank.

    Attributes:
        config: model configuration of megatron-core.
        chunks: model chunks of this pipeline stage, wrapped for data parallelism.
        optimizer: optimizer, with the main (float32) weights.
        scheduler: schedule of learning rate and weight decay.
        padded_vocab_size: rows of the embedding.
        adapter: settings of the adapter; None if all parameters are trained.
        base: base model of the adapter, from `load_base`; None before, and for random weights that are not saved.
    """

    config: TransformerConfig
    chunks: list[torch.nn.Module]
    optimizer: MegatronOptimizer
    scheduler: LearningRateSchedule
    padded_vocab_size: int
    adapter: AdapterSettings | None = None
    base: BaseModel | None = None

    @property
    def state(self) -> TrainingState:
        """The part of the state that checkpoints hold as tensors."""
        if self.adapter is None:
            return TrainingState(self.chunks, self.optimizer)
        return TrainingState(self.chunks, self.optimizer, "adapter", AdapterRecord(self.adapter, self.base))


def setup_model_and_optimizer(
    arguments: PretrainArguments, device: Device, derived: DerivedSettings
) -> ModelAndOptimizer:
    """Build model, optimizer and schedule from the arguments. Collective.

    Args:
        arguments: checked arguments.
        device: device of this rank.
        derived: vocabulary, length, operators and attention kernel of the run.

    Raises:
        ConfigError: the warm-up of the schedule is not shorter than its decay.
    """
    config, bare = build_chunks(arguments, device, derived)
    chunks = wrap_chunks(arguments.parallel, config, bare)
    ratio = arguments.lora.lora_plus_ratio
    optimizer = build_optimizer(arguments.training, arguments.parallel, chunks, device.traits.has_data, ratio)
    scheduler = build_scheduler(arguments.training, derived.global_batch_size, optimizer, derived.length)
    register_callbacks(arguments.parallel, config, chunks, optimizer)
    return ModelAndOptimizer(config, chunks, optimizer, scheduler, derived.vocabulary.padded, arguments.adapter)


def build_chunks(
    arguments: PretrainArguments, device: Device, derived: DerivedSettings
) -> tuple[TransformerConfig, list[torch.nn.Module]]:
    """Build the model chunks of this rank with random weights, without wrappers; with an adapter, freeze the base.

    Args:
        arguments: checked arguments.
        device: device of this rank.
        derived: vocabulary, operators and attention kernel of the run.

    Returns:
        The configuration, and the chunks on the device.
    """
    assert derived.attention is not None, "an attention kernel is chosen before a model is built"
    config = transformer_config(arguments, derived.operators)
    adapter = arguments.adapter
    bare: list[torch.nn.Module] = build_model(
        arguments.model,
        arguments.data.seq_length,
        config,
        derived.vocabulary,
        derived.operators,
        derived.attention.kernel,
        derived.loss.chunk_size,
        arguments.training.recomputes_activation_function,
        adapted_modules(adapter, arguments.model.query_groups),
        virtual_tokens_of(adapter),
    )
    if adapter is not None:
        freeze_base(bare)
        initialize_adapter(bare, arguments.training.seed)
    # Tensors on the meta device have no data that could be moved to another device.
    if device.traits.has_data:
        bare = [chunk.to(device.torch_device) for chunk in bare]
    return config, bare


def wrap_chunks(
    parallel: ParallelArguments,
    config: TransformerConfig,
    bare: list[torch.nn.Module],
    gradients_in_float32: bool = True,
) -> list[torch.nn.Module]:
    """Wrap model chunks for 16-bit precision and data parallelism. Collective.

    Args:
        parallel: flags for gradient reduction and buckets.
        config: configuration of the model.
        bare: model chunks of this rank, on its device.
        gradients_in_float32: whether gradients are summed in float32, and not in the dtype of the weights.

    Returns:
        The wrapped chunks, with the weights of data-parallel rank 0 on every replica.
    """
    if config.bf16 or config.fp16:
        bare = [Float16Module(config, chunk) for chunk in bare]
    settings = DistributedDataParallelConfig(
        grad_reduce_in_fp32=gradients_in_float32,
        overlap_grad_reduce=parallel.overlap_grad_reduce,
        overlap_param_gather=parallel.overlap_param_gather,
        bucket_size=parallel.ddp_bucket_size,
        use_distributed_optimizer=parallel.use_distributed_optimizer,
        # `train_step` checks loss and gradient itself: it knows the iteration and the packs, and can skip the step.
        check_for_nan_in_grad=False,
    )
    # As in Megatron, only the first chunk is divided into buckets: the gradients of later chunks are reduced while
    # other chunks still compute.
    chunks: list[torch.nn.Module] = [
        DistributedDataParallel(config=config, ddp_config=settings, module=chunk, disable_bucketing=index > 0)
        for index, chunk in enumerate(bare)
    ]
    for chunk in chunks:
        chunk.broadcast_params()  # type: ignore[operator]
    return chunks


def build_optimizer(
    training: TrainingArguments,
    parallel: ParallelArguments,
    chunks: list[torch.nn.Module],
    gloo: bool = True,
    lora_plus_ratio: float = 1.0,
) -> MegatronOptimizer:
    """Build AdamW over all model chunks. As in Megatron, biases and norms have no weight decay.

    Args:
        training: flags of the optimizer.
        parallel: flags of the distributed optimizer.
        chunks: model chunks of this rank, wrapped by `wrap_chunks`.
        gloo: whether CPU process groups exist beside those of the device.
        lora_plus_ratio: learning rate of the factors B of an adapter divided by that of the factors A (LoRA+, Hayou et
            al. 2024, https://arxiv.org/abs/2402.12354).
    """
    config = OptimizerConfig(
        optimizer="adam",
        lr=training.lr,
        min_lr=training.min_lr,
        weight_decay=training.weight_decay,
        adam_beta1=training.adam_beta1,
        adam_beta2=training.adam_beta2,
        adam_eps=training.adam_eps,
        clip_grad=training.clip_grad,
        fp16=training.fp16,
        bf16=training.bf16,
        params_dtype=DTYPES[training.precision],
        initial_loss_scale=training.initial_loss_scale,
        use_distributed_optimizer=parallel.use_distributed_optimizer,
        overlap_param_gather=parallel.overlap_param_gather,
    )
    overrides = get_standard_config_overrides(config)
    if lora_plus_ratio != 1.0:
        rates = {"max_lr": training.lr * lora_plus_ratio, "min_lr": training.min_lr * lora_plus_ratio}
        # megatron-core recognises the groups of a checkpoint by this value; the schedule itself reads the two rates.
        overrides[ParamKey(name=FACTOR_B_NAMES)] = ParamGroupOverride(**rates, lr_mult=lora_plus_ratio)
    return get_megatron_optimizer(config, chunks, overrides, use_gloo_process_groups=gloo)


def register_callbacks(
    parallel: ParallelArguments,
    config: TransformerConfig,
    chunks: list[torch.nn.Module],
    optimizer: MegatronOptimizer,
) -> None:
    """Register the data-parallel and loss-scaling callbacks in the TransformerConfig.

    The pipeline schedules of megatron-core read them from there.

    Args:
        parallel: flags for overlapped communication.
        config: configuration that receives the callbacks.
        chunks: model chunks of this rank, wrapped by `wrap_chunks`.
        optimizer: source of the loss scale.
    """
    config.finalize_model_grads_func = finalize_model_grads
    # A weak reference: the optimizer holds views of the weights, whose autograd nodes hold hooks of the chunks, which
    # hold `config`. Python's garbage collector cannot follow autograd nodes, so a strong reference would keep the
    # model, and the threads of its process groups, alive until the process ends.
    scale_loss = weakref.WeakMethod(optimizer.scale_loss)
    config.grad_scale_func = lambda loss: scale_loss()(loss)  # type: ignore[misc]
    if parallel.overlap_grad_reduce:
        no_sync = [chunk.no_sync for chunk in chunks]
        config.no_sync_func = no_sync[0] if len(chunks) == 1 else no_sync
        if len(chunks) > 1:
            config.grad_sync_func = [chunk.start_grad_sync for chunk in chunks]
    if parallel.overlap_param_gather and len(chunks) > 1:
        config.param_sync_func = [chunk.start_param_sync for chunk in chunks]
