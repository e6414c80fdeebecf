"""Flags of LLaMA-Factory, TRL, transformers, ms-swift and axolotl, with what to give here instead.

The names are those of the flag tables in docs/coming-from-llama-factory.md and docs/coming-from-trl.md; a test compares
the tables with these hints, and each flag that a hint names with the flags of its program.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

Hints = Mapping[str, str]


def _hints(rows: tuple[tuple[str, str], ...]) -> Hints:
    """Return name → hint, from rows of names that are separated by spaces, and their hint."""
    return {name: hint for names, hint in rows for name in names.split()}


_LENGTH = ("cutoff_len max_length max_seq_length max_seq_len model_max_length sequence_len", "use --seq-length")
_TEMPLATE = ("template", "use --prompt-type; --prompt-type hf is the template of the tokenizer")
_TRAINED = (
    "assistant_only_loss completion_only_loss train_on_inputs",
    "leave it out: only answers are trained, unless --train-on-prompt is given",
)
_WORKERS = ("preprocessing_num_workers dataset_num_proc", "use --workers")

# Names with underscores → what to give to pretrain_gpt.py.
TRAINING: Hints = _hints(
    (
        (
            "model_name_or_path model_id_or_path model base_model",
            "use --load with the folder of the model on this machine",
        ),
        (
            "finetuning_type train_type tuner_type use_peft",
            "all parameters are trained unless an adapter is chosen: use --lora-target-modules all-linear for LoRA, "
            "--tuning for other methods",
        ),
        ("lora_rank", "use --lora-r"),
        ("lora_target target_modules", "use --lora-target-modules, such as --lora-target-modules all-linear"),
        ("loraplus_lr_ratio", "use --lora-plus-ratio"),
        ("adapter_name_or_path adapters", "use --adapter-load with a folder of peft or a checkpoint"),
        ("quantization_bit load_in_4bit load_in_8bit", "QLoRA is not supported yet; leave the flag out"),
        (
            "pissa_init",
            "another initialisation of LoRA, such as PiSSA, is not supported yet; leave the flag out",
        ),
        (
            "dataset dataset_name datasets",
            "use --data-path with the prefix of packed files, or, together with --handler-name, with raw rows",
        ),
        ("dataset_dir", "use --data-path, which takes complete paths"),
        _TEMPLATE,
        _LENGTH,
        (
            "packing neat_packing sample_packing packing_strategy",
            "use --neat-pack and --reset-position-ids, and with raw rows (--handler-name) also --pack",
        ),
        _TRAINED,
        _WORKERS,
        ("dataloader_num_workers", "use --num-workers"),
        ("per_device_train_batch_size", "use --micro-batch-size, which counts packs"),
        ("per_device_eval_batch_size", "leave it out: evaluations use --micro-batch-size"),
        (
            "gradient_accumulation_steps",
            "use --global-batch-size, which is --micro-batch-size × data-parallel ranks × steps to accumulate",
        ),
        ("learning_rate", "use --lr"),
        ("warmup_ratio", "use --lr-warmup-fraction"),
        ("warmup_steps", "use --lr-warmup-iters"),
        ("lr_scheduler_type lr_scheduler", "use --lr-decay-style"),
        ("num_train_epochs num_epochs", "use --train-epochs"),
        ("max_steps", "use --train-iters"),
        ("max_grad_norm", "use --clip-grad"),
        ("adam_epsilon", "use --adam-eps"),
        ("optim", "leave it out: the optimizer is AdamW"),
        ("torch_dtype", "use --bf16 or --fp16"),
        ("val_size split_dataset_ratio val_set_size", "use --split, such as --split 95,5,0"),
        ("eval_dataset val_dataset", "use --valid-data-path"),
        ("eval_strategy evaluation_strategy", "use --eval-interval, with --split 95,5,0 or --valid-data-path"),
        ("eval_steps", "use --eval-interval"),
        ("output_dir", "use --save for checkpoints, and --save-hf for the trained model"),
        ("save_steps", "use --save-interval"),
        ("save_total_limit", "use --keep-last"),
        ("save_only_model", "use --no-save-optim: checkpoints without the optimizer"),
        ("overwrite_cache", "leave it out: raw rows are prepared again when they or their settings change"),
        ("logging_steps", "use --log-interval"),
        ("load_best_model_at_end", "use --best-checkpoint"),
        ("early_stopping_steps early_stopping_patience", "use --early-stopping"),
        (
            "resume_from_checkpoint overwrite_output_dir",
            "leave it out: the same command resumes from --save, and another --save is another run",
        ),
        ("plot_loss", "leave it out: loss.png is always drawn"),
        ("report_to", "use --tensorboard-dir, --swanlab-mode or --wandb-project"),
        (
            "deepspeed fsdp",
            "use --use-distributed-optimizer to divide the optimizer state over the ranks, and "
            "--tensor-model-parallel-size and --pipeline-model-parallel-size to divide the model",
        ),
        (
            "gradient_checkpointing",
            "use --recompute-granularity full --recompute-method uniform --recompute-num-layers 1",
        ),
        (
            "flash_attn attn_implementation attn_impl flash_attention",
            "leave it out: the fused attention of the device is chosen",
        ),
        (
            "use_liger_kernel enable_liger_kernel",
            "leave it out: the logits of all tokens are never in memory together",
        ),
        ("ddp_timeout", "use --distributed-timeout-minutes"),
        ("do_train", "leave it out: the program always trains"),
    )
)

# Names with underscores → what to give to preprocess_data.py.
PREPROCESSING: Hints = _hints(
    (
        ("model_name_or_path model_id_or_path model base_model", "use --tokenizer-name-or-path"),
        ("dataset dataset_name datasets", "use --input, once for each data set"),
        ("dataset_dir", "use --input, which takes complete paths"),
        ("output_dir tokenized_path", "use --output-prefix"),
        _TEMPLATE,
        _LENGTH,
        ("packing neat_packing sample_packing packing_strategy", "use --pack and --neat-pack"),
        (
            "reset_position_ids reset_attention_mask padded_samples no_shuffle micro_batch_size global_batch_size",
            "it belongs to the training (pretrain_gpt.py), leave it out here",
        ),
        _TRAINED,
        _WORKERS,
    )
)

# Names with underscores → what to give to convert_ckpt.py.
CONVERSION: Hints = _hints(
    (
        ("model_name_or_path model_id_or_path model base_model", "use --load-dir"),
        ("adapter_name_or_path adapters", "use --lora-load"),
        ("output_dir export_dir", "use --save-dir"),
    )
)


def refusal_of(hints: Hints) -> Callable[[str], str | None]:
    """Return the function that names the reason why the flag of another framework is refused.

    Args:
        hints: name → hint, of one program.

    Returns:
        Takes the name of an undeclared flag, such as '--learning-rate', and returns the message; None if no framework
        is known to have it.
    """

    def refusal(name: str) -> str | None:
        hint = hints.get(name.lstrip("-").replace("-", "_"))
        return None if hint is None else f"{name} is not a flag of this program; {hint}"

    return refusal


def flags_in(message: str, known: Mapping[str, object]) -> Iterator[str]:
    """Yield the flags of a program that a message names.

    Args:
        message: the text.
        known: flags of the program, with --.
    """
    for word in message.split():
        name = word.strip(",;:.()")
        if name in known:
            yield name
