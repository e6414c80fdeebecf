"""A valid command line of pretrain_gpt.py for four ranks, changes that break one rule each, and valid changes."""

from __future__ import annotations

# A valid command line for four ranks.
SMALL = {
    "--num-layers": "4",
    "--hidden-size": "64",
    "--num-attention-heads": "8",
    "--group-query-attention": "",
    "--num-query-groups": "2",
    "--seq-length": "128",
    "--micro-batch-size": "2",
    "--global-batch-size": "8",
    "--lr": "1e-4",
    "--train-iters": "10",
    "--data-path": "packed/alpaca",
    "--split": "90,10,0",
    "--is-instruction-dataset": "",
    "--padded-vocab-size": "512",
    "--no-save-model": "",
}


def words(flags: dict[str, str]) -> list[str]:
    return [word for flag, value in flags.items() for word in (flag, *value.split())]


def small(**changes: str | None) -> list[str]:
    """Return SMALL with flags added, changed or removed (None), as in tensor_model_parallel_size="2"."""
    flags: dict[str, str] = dict(SMALL)
    for name, value in changes.items():
        flag = "--" + name.replace("_", "-")
        flags.pop(flag, None)
        if value is not None:
            flags[flag] = value
    return words(flags)


PROMPT: dict[str, str | None] = {
    "tuning": "prompt",
    "virtual_tokens": "8",
    "neat_pack": "",
    "reset_position_ids": "",
}

# name -> (changed flags, beginning of the only problem)
BROKEN: dict[str, tuple[dict[str, str | None], str]] = {
    "no model": ({"no_save_model": None}, "--save is missing: without it the trained model is lost at the end; add"),
    "a fraction of an unknown peak": (
        {"dry_run": "", "mfu": "0.4"},
        "--mfu 0.4 is a fraction of the peak of a device; name it with --device-type",
    ),
    "a device type of another device": (
        {"dry_run": "", "device_type": "910B", "device": "cuda"},
        "--device-type 910B is a device of --device npu, not cuda; leave --device out",
    ),
    "no fraction": ({"dry_run": "", "device_type": "A100", "mfu": "40"}, "--mfu"),
    "no progress": ({"dry_run": "", "device_type": "A100", "mfu": "0"}, "--mfu"),
    "an unknown device type": ({"dry_run": "", "device_type": "V100"}, "--device-type"),
    "folders without checkpoints": (
        {"save": "out", "save_hf_interval": "4"},
        "--save-hf-interval 4 must be a multiple of --save-interval",
    ),
    "folders between checkpoints": (
        {"save": "out", "save_interval": "4", "save_hf_interval": "6"},
        "--save-hf-interval 6 must be a multiple of --save-interval",
    ),
    "folders without a directory": ({"save_hf_interval": "4"}, "--save-hf-interval 4 needs --save; add --save DIR"),
    "best without a directory": (
        {"best_checkpoint": "", "eval_interval": "5"},
        "--best-checkpoint needs --save; add --save DIR, or leave the flag out",
    ),
    "best without evaluations": (
        {"best_checkpoint": "", "save": "out"},
        "--best-checkpoint compares the held-out losses of evaluations; give --eval-interval N",
    ),
    "early stopping without evaluations": (
        {"early_stopping": "2"},
        "--early-stopping 2 compares the held-out losses of evaluations; give --eval-interval N",
    ),
    "early stopping without held-out data": (
        {"early_stopping": "2", "eval_interval": "5", "split": "100,0,0"},
        "--early-stopping 2 needs data that are held out; give a second number above 0 in --split, or",
    ),
    "ranks": ({"tensor_model_parallel_size": "8"}, "4 ranks cannot be divided by --tensor-model-parallel-size 8"),
    "context": ({"context_parallel_size": "2"}, "--context-parallel-size 2: context parallelism is not supported yet"),
    "layers": ({"num_layers": "3", "pipeline_model_parallel_size": "2"}, "--num-layers 3 cannot be divided"),
    "virtual, one stage": (
        {"num_layers_per_virtual_pipeline_stage": "1"},
        "--num-layers-per-virtual-pipeline-stage 1 needs --pipeline-model-parallel-size above 1",
    ),
    "virtual, layers": (
        {"num_layers": "6", "pipeline_model_parallel_size": "2", "num_layers_per_virtual_pipeline_stage": "2"},
        "--num-layers-per-virtual-pipeline-stage 2 does not divide the 3 layers of a stage",
    ),
    "virtual, micro-batches": (
        {
            "pipeline_model_parallel_size": "2",
            "num_layers_per_virtual_pipeline_stage": "1",
            "global_batch_size": "12",
        },
        "--num-layers-per-virtual-pipeline-stage 1: the 3 micro-batches of an update are not a multiple of",
    ),
    "heads": ({"num_attention_heads": "6", "tensor_model_parallel_size": "4", "kv_channels": "8"}, "--num-attention-"),
    "head size": ({"num_attention_heads": "6"}, "--hidden-size 64 cannot be divided by --num-attention-heads 6"),
    "odd head": ({"kv_channels": "7"}, "--rotary-percent 1 of a head of 7"),
    "groups": ({"num_query_groups": "3"}, "--num-attention-heads 8 cannot be divided by --num-query-groups 3"),
    "groups and ranks": (
        {"num_attention_heads": "12", "num_query_groups": "6", "kv_channels": "8", "tensor_model_parallel_size": "4"},
        "--num-query-groups 6 must be a multiple or a divisor of --tensor-model-parallel-size 4",
    ),
    "groups, no number": ({"num_query_groups": None}, "--group-query-attention needs --num-query-groups"),
    "groups, no flag": ({"group_query_attention": None}, "--num-query-groups 2 has no effect without"),
    "ffn": ({"ffn_hidden_size": "255", "tensor_model_parallel_size": "2"}, "--ffn-hidden-size 255 cannot be divided"),
    "vocabulary": (
        {"padded_vocab_size": "511", "tensor_model_parallel_size": "2"},
        "--padded-vocab-size 511 cannot be divided by --tensor-model-parallel-size 2",
    ),
    "vocabularies": ({"vocab_size": "600"}, "--padded-vocab-size 512 is less than --vocab-size 600"),
    "no vocabulary": ({"padded_vocab_size": None}, "the vocabulary is unknown"),
    "attention dropout": ({"attention_dropout": "0.1"}, "--attention-dropout 0.1: dropout of attention weights is not"),
    "batch": ({"global_batch_size": "12"}, "--global-batch-size 12 is not a multiple of --micro-batch-size 2 × 4"),
    "few samples": ({"train_iters": None, "train_samples": "7"}, "--train-samples 7 is less than one --global-batch"),
    "length": ({"max_position_embeddings": "127"}, "--seq-length 128 is more than --max-position-embeddings 127"),
    "learned positions": (
        {"position_embedding_type": "learned_absolute", "max_position_embeddings": "127"},
        "--seq-length 128 is more than --max-position-embeddings 127, the rows of the table of learned positions",
    ),
    "learned positions, no number": (
        {"position_embedding_type": "learned_absolute"},
        "--position-embedding-type learned_absolute needs --max-position-embeddings",
    ),
    "learned positions, scaled": (
        {"position_embedding_type": "learned_absolute", "max_position_embeddings": "128", "use_rope_scaling": ""},
        "--use-rope-scaling has no effect with --position-embedding-type learned_absolute",
    ),
    "learned positions, rotary": (
        {
            "position_embedding_type": "learned_absolute",
            "max_position_embeddings": "128",
            "use_rotary_position_embeddings": "",
        },
        "--use-rotary-position-embeddings contradicts --position-embedding-type learned_absolute",
    ),
    "sequence parallel": (
        {"sequence_parallel": "", "tensor_model_parallel_size": "4", "seq_length": "63", "micro_batch_size": "2"},
        "--sequence-parallel: the 126 slots of a micro-batch (--seq-length 63 × --micro-batch-size 2)",
    ),
    "padding": ({"variable_seq_lengths": "", "pad_to_multiple_of": "256"}, "--pad-to-multiple-of 256 is more than"),
    "how long": ({"train_iters": None}, "the training length is missing"),
    "how long, twice": (
        {"train_epochs": "2"},
        "--train-iters 10 and --train-epochs 2: the training length is given more",
    ),
    "lr": ({"min_lr": "1e-3"}, "--min-lr 0.001 is above --lr 0.0001"),
    "warm-up": ({"lr_warmup_fraction": "0.1", "lr_warmup_iters": "1"}, "--lr-warmup-fraction 0.1 and --lr-warmup-it"),
    "long warm-up": ({"lr_warmup_iters": "10"}, "--lr-warmup-iters 10 is not less than --train-iters 10"),
    "samples and warm-up": (
        {"train_iters": None, "train_samples": "80", "lr_warmup_iters": "1"},
        "--lr-warmup-iters cannot be combined with --train-samples",
    ),
    "recompute, method": (
        {"recompute_granularity": "full", "recompute_num_layers": "1"},
        "--recompute-granularity full needs --recompute-method",
    ),
    "recompute, layers": (
        {"recompute_granularity": "full", "recompute_method": "block"},
        "--recompute-granularity full needs --recompute-num-layers",
    ),
    "recompute, needless": (
        {"recompute_granularity": "selective", "recompute_method": "block"},
        "--recompute-method block has an effect only with --recompute-granularity full",
    ),
    "recompute, too many": (
        {"recompute_granularity": "full", "recompute_method": "block", "recompute_num_layers": "5"},
        "--recompute-num-layers 5: a pipeline stage has 4 layers",
    ),
    "recompute, uniform": (
        {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": "3"},
        "--recompute-num-layers 3 does not divide the 4 layers of a pipeline stage",
    ),
    "recompute, both": (
        {
            "recompute_activations": "",
            "recompute_granularity": "full",
            "recompute_method": "block",
            "recompute_num_layers": "1",
        },
        "--recompute-activations means --recompute-granularity selective",
    ),
    "recompute, function of no layer": (
        {
            "recompute_activation_function": "",
            "recompute_granularity": "full",
            "recompute_method": "uniform",
            "recompute_num_layers": "1",
        },
        "--recompute-activation-function has no effect with --recompute-method uniform",
    ),
    "recompute, layers of no function": (
        {"recompute_activation_function_num_layers": "1"},
        "--recompute-activation-function-num-layers 1 needs --recompute-activation-function",
    ),
    "recompute, a stage of a list": (
        {
            "num_layer_list": "1,3",
            "pipeline_model_parallel_size": "2",
            "recompute_granularity": "full",
            "recompute_method": "uniform",
            "recompute_num_layers": "2",
        },
        "--recompute-num-layers 2 does not divide the 1 layers of a pipeline stage",
    ),
    "layer list": (
        {"num_layer_list": "3;1", "pipeline_model_parallel_size": "2"},
        "--num-layer-list 3;1: not whole numbers above 0",
    ),
    "layer list, an empty stage": (
        {"num_layer_list": "4,0", "pipeline_model_parallel_size": "2"},
        "--num-layer-list 4,0: not whole numbers above 0",
    ),
    "layer list, stages": (
        {"num_layer_list": "1,1,2", "pipeline_model_parallel_size": "2"},
        "--num-layer-list 1,1,2 has 3 numbers; give one for each stage of --pipeline-model-parallel-size 2",
    ),
    "layer list, layers": (
        {"num_layer_list": "1,2", "pipeline_model_parallel_size": "2"},
        "--num-layer-list 1,2 is 3 layers, not --num-layers 4",
    ),
    "layer list, virtual": (
        {
            "num_layer_list": "2,2",
            "pipeline_model_parallel_size": "2",
            "num_layers_per_virtual_pipeline_stage": "1",
        },
        "--num-layer-list 2,2 and --num-layers-per-virtual-pipeline-stage 1: keep one of the flags",
    ),
    "spec": ({"spec": "a.b c"}, "--spec a.b c: not supported; leave it out"),
    "spec of Qwen3": (
        {"spec": "mindspeed_llm.tasks.models.spec.qwen3_spec layer_spec"},
        "--spec mindspeed_llm.tasks.models.spec.qwen3_spec layer_spec is a model with --qk-layernorm; add it",
    ),
    "rope type": ({"rope_scaling_type": "yarn"}, "--rope-scaling-type yarn: not supported yet; supported: llama3"),
    "rope constants": ({"low_freq_factor": "2"}, "--low-freq-factor 2: only 1, as in Llama 3.1 and 3.2, is supported"),
    "mask": ({"attention_mask_type": "general"}, "--attention-mask-type general: not supported yet; supported: causal"),
    "precision": ({"bf16": "", "fp16": ""}, "--bf16 and --fp16: keep one"),
    "gather, optimizer": (
        {"overlap_param_gather": "", "overlap_grad_reduce": ""},
        "--overlap-param-gather needs --use-distributed-optimizer",
    ),
    "gather, reduce": (
        {"overlap_param_gather": "", "use_distributed_optimizer": ""},
        "--overlap-param-gather needs --overlap-grad-reduce",
    ),
    "loss": (
        {"calculate_per_token_loss": "", "loss_normalization": "sample"},
        "--calculate-per-token-loss means --loss-normalization token, not sample",
    ),
    "no data": ({"data_path": None, "split": None}, "--data-path is missing"),
    "two kinds of data": (
        {"train_data_path": "a", "valid_data_path": "b", "split": None},
        "--data-path and --train-data-path, --valid-data-path: give one data path with --split",
    ),
    "no training data": ({"data_path": None, "split": None, "valid_data_path": "b"}, "--train-data-path is missing"),
    "split and paths": ({"data_path": None, "train_data_path": "b"}, "--split 90,10,0 divides --data-path"),
    "weights": ({"data_path": "0.5 a -1 b"}, "--data-path 0.5 a -1 b: weights must be above 0"),
    "split": ({"split": "90,x,0"}, "--split 90,x,0: not three numbers"),
    "split of four": ({"split": "1,2,3,4"}, "--split 1,2,3,4: not three numbers"),
    "split of nothing": ({"split": "0,0,0"}, "--split 0,0,0: all shares are 0"),
    "no training share": ({"split": "0,1,0"}, "--split 0,1,0: nothing is left for training"),
    "sft of documents": (
        {"is_instruction_dataset": None, "stage": "sft"},
        "--stage sft needs --is-instruction-dataset",
    ),
    "neat documents": (
        {"is_instruction_dataset": None, "neat_pack": "", "reset_position_ids": ""},
        "--neat-pack is for packed files: add --is-instruction-dataset",
    ),
    "prompt type of documents": (
        {"is_instruction_dataset": None, "prompt_type": "qwen"},
        "--prompt-type qwen is for packed files",
    ),
    "variable documents": (
        {"is_instruction_dataset": None, "variable_seq_lengths": ""},
        "--variable-seq-lengths is for packed files",
    ),
    "instructions as documents": (
        {"is_instruction_dataset": None, "handler_name": "AlpacaStyleInstructionHandler"},
        "--handler-name AlpacaStyleInstructionHandler reads instructions: add --is-instruction-dataset",
    ),
    "end token of packs": ({"eod_id": "2"}, "--eod-id 2 is for documents, not for packed files"),
    "file order of packs": ({"split_in_file_order": ""}, "--split-in-file-order is for documents"),
    "WSD without length": ({"lr_decay_style": "WSD"}, "--lr-decay-style WSD needs --lr-wsd-decay-iters"),
    "length without WSD": ({"lr_wsd_decay_iters": "2"}, "--lr-wsd-decay-iters and --lr-wsd-decay-samples need"),
    "WSD and warm-up": (
        {"lr_decay_style": "WSD", "lr_wsd_decay_iters": "6", "lr_warmup_iters": "5"},
        "--lr-wsd-decay-iters 6 and --lr-warmup-iters together are longer than the decay",
    ),
    "WSD and warm-up in samples": (
        {
            "train_iters": None,
            "train_samples": "80",
            "lr_decay_style": "WSD",
            "lr_wsd_decay_samples": "60",
            "lr_warmup_samples": "40",
        },
        "--lr-wsd-decay-samples 60 and --lr-warmup-samples together are longer than the decay",
    ),
    "WSD and a warm-up that is a part": (
        {"lr_decay_style": "WSD", "lr_wsd_decay_iters": "8", "lr_warmup_fraction": "0.5"},
        "--lr-wsd-decay-iters 8 and --lr-warmup-fraction together are longer than the decay",
    ),
    "warm-up of samples": (
        {"train_iters": None, "train_samples": "40", "lr_warmup_samples": "50"},
        "--lr-warmup-samples 50 is not less than the decay",
    ),
    "style without WSD": ({"lr_wsd_decay_style": "linear"}, "--lr-wsd-decay-style linear needs --lr-decay-style WSD"),
    "end token": (
        {"is_instruction_dataset": None, "eod_id": "512"},
        "--eod-id 512 is not a token of the vocabulary",
    ),
    "WSD iterations and samples": (
        {"train_iters": None, "train_samples": "80", "lr_decay_style": "WSD", "lr_wsd_decay_iters": "2"},
        "--lr-wsd-decay-iters cannot be combined with --train-samples",
    ),
    "warm-up in samples": (
        {"lr_warmup_samples": "8"},
        "--lr-warmup-samples 8 counts packs or blocks, --train-iters updates; use --lr-warmup-iters",
    ),
    "two warm-ups": (
        {"train_iters": None, "train_samples": "80", "lr_warmup_samples": "8", "lr_warmup_fraction": "0.1"},
        "--lr-warmup-samples 8 and --lr-warmup-fraction 0.1: keep one",
    ),
    "config and weights": (
        {"hf_config_path": "HF_CONFIG", "load": "ckpt"},
        "--hf-config-path HF_CONFIG is for random weights",
    ),
    "neat": ({"neat_pack": ""}, "--neat-pack needs --reset-position-ids"),
    "shuffle": ({"no_shuffle": "", "full_shuffle_instruction_dataset": ""}, "--no-shuffle and --full-shuffle"),
    "tokenizer folder": ({"tokenizer_type": "PretrainedFromHF"}, "--tokenizer-type PretrainedFromHF needs"),
    "tokenizer model": ({"tokenizer_type": "GPTSentencePieceTokenizer"}, "--tokenizer-type GPTSentencePieceTokenizer"),
    "save": ({"save_interval": "5"}, "--save-interval 5 needs --save"),
    # single flags
    "no micro-batch": ({"micro_batch_size": "0"}, "--micro-batch-size 0: must be at least 1"),
    "negative": ({"weight_decay": "-0.1"}, "--weight-decay -0.1: must be at least 0"),
    "percent": ({"rotary_percent": "1.5"}, "--rotary-percent 1.5: must be at most 1"),
    "beta": ({"adam_beta1": "1"}, "--adam-beta1 1.0: must be below 1"),
    "epsilon": ({"norm_epsilon": "0"}, "--norm-epsilon 0.0: must be above 0"),
    "seed": ({"seed": "0"}, "--seed 0: must be at least 1"),
    "no ranks to divide": ({"tensor_model_parallel_size": "0"}, "--tensor-model-parallel-size 0: must be at least 1"),
    "position": ({"position_embedding_type": "yarn"}, "--position-embedding-type yarn: not supported yet"),
    "stage": ({"stage": "dpo"}, "--stage dpo: not supported yet; supported: pretrain, sft"),
    "format": ({"ckpt_format": "torch_dcp"}, "--ckpt-format torch_dcp: not supported yet"),
    "rank without adapter": ({"lora_r": "8"}, "--lora-r 8 has an effect only with an adapter"),
    "alpha without adapter": ({"lora_alpha": "8"}, "--lora-alpha 8 has an effect only with an adapter"),
    "dropout without adapter": ({"lora_dropout": "0.1"}, "--lora-dropout 0.1 has an effect only with an adapter"),
    "rslora without adapter": ({"use_rslora": ""}, "--use-rslora has an effect only with an adapter"),
    "lora+ without adapter": ({"lora_plus_ratio": "2"}, "--lora-plus-ratio 2 has an effect only with an adapter"),
    "merged without adapter": (
        {"save": "x", "save_hf_merged": "y"},
        "--save-hf-merged y has an effect only with an adapter",
    ),
    "merged without save": (
        {"lora_target_modules": "q_proj", "swiglu": "", "save_hf_merged": "y"},
        "--save-hf-merged needs --save",
    ),
    "merged over the adapter": (
        {"save": "x", "lora_target_modules": "q_proj", "swiglu": "", "save_hf": "y", "save_hf_merged": "y"},
        "--save-hf-merged y: --save-hf names the same folder",
    ),
    "adapter beside its base": (
        {"save": "x", "load": "./x", "lora_target_modules": "q_proj", "swiglu": ""},
        "--save x: --load names the same directory, but the base model of an adapter must not be where",
    ),
    "unknown target": (
        {"lora_target_modules": "wq", "swiglu": ""},
        "--lora-target-modules wq: unknown; known are linear_qkv, q_proj",
    ),
    "two methods": (
        {"tuning": "adapter", "adapter_size": "8", "lora_target_modules": "q_proj", "swiglu": ""},
        "--tuning adapter and --lora-target-modules q_proj: a run trains one method",
    ),
    "lora without targets": ({"tuning": "lora"}, "--tuning lora needs --lora-target-modules NAME or --lora-load DIR"),
    "rank of another method": (
        {"tuning": "adapter", "adapter_size": "8", "swiglu": "", "lora_r": "8"},
        "--lora-r 8 has an effect only with LoRA; --tuning adapter is another method; leave the flag out",
    ),
    "merged virtual tokens": (
        {**PROMPT, "save": "x", "save_hf_merged": "y"},
        "--save-hf-merged y has an effect only with LoRA; --tuning prompt is no change of the weights",
    ),
    "virtual tokens without a number": ({**PROMPT, "virtual_tokens": None}, "--tuning prompt needs --virtual-tokens N"),
    "virtual tokens without a method": ({"virtual_tokens": "8"}, "--virtual-tokens 8 has an effect only with --tuning"),
    "too many virtual tokens": ({**PROMPT, "virtual_tokens": "128"}, "--virtual-tokens 128 leaves no slot for a token"),
    "virtual tokens without neat packs": ({**PROMPT, "neat_pack": None}, "--tuning prompt needs --neat-pack"),
    "prefix without positions": (
        {**PROMPT, "tuning": "prefix", "reset_position_ids": None, "reset_attention_mask": ""},
        "--tuning prefix needs --reset-position-ids",
    ),
    "encoder without P-tuning": ({**PROMPT, "prompt_encoder_size": "8"}, "--prompt-encoder-size 8 has an effect only"),
    "bottleneck without a size": ({"tuning": "adapter", "swiglu": ""}, "--tuning adapter needs --adapter-size N"),
    "size without bottlenecks": ({"adapter_size": "8"}, "--adapter-size 8 has an effect only with --tuning adapter"),
    "bottleneck without swiglu": ({"tuning": "adapter", "adapter_size": "8"}, "--tuning adapter needs --swiglu"),
    "adapter without swiglu": ({"lora_target_modules": "q_proj"}, "--lora-target-modules needs --swiglu"),
    "no adapter to load": ({"lora_load": "/nowhere"}, "--lora-load /nowhere: no such directory"),
    "qlora": ({"qlora": ""}, "--qlora: QLoRA is not supported yet"),
    "dora": ({"use_dora": ""}, "--use-dora: DoRA is not supported yet"),
    "experts": ({"num_experts": "8"}, "--num-experts: mixture of experts is not supported yet"),
    "expert ranks": ({"expert_model_parallel_size": "2"}, "--expert-model-parallel-size: mixture of experts is not"),
    "router": ({"moe_router_topk": "2"}, "--moe-router-topk: mixture of experts is not supported yet"),
    "context, how": ({"context_parallel_algo": "ulysses"}, "--context-parallel-algo: context parallelism is not"),
    "misspelt": ({"train_iters": None, "train_iter": "10"}, "--train-iter is not a flag of this program; did you mean"),
}

# name -> changed flags that break no rule
ALLOWED: dict[str, dict[str, str | None]] = {
    "nothing is saved by a plan": {"no_save_model": None, "dry_run": ""},
    "a plan for a device type": {"dry_run": "", "device_type": "910B", "device": "npu", "mfu": "1"},
    "the best checkpoint": {
        "save": "out",
        "best_checkpoint": "",
        "early_stopping": "2",
        "eval_interval": "5",
        "save_interval": "5",
        "save_hf_interval": "10",
    },
    "fewer groups than ranks": {"num_query_groups": "2", "tensor_model_parallel_size": "4"},
    "one group": {"num_query_groups": "1", "tensor_model_parallel_size": "4"},
    "interleaved pipeline": {
        "pipeline_model_parallel_size": "2",
        "num_layers_per_virtual_pipeline_stage": "1",
        "global_batch_size": "16",
    },
    "one virtual stage is none": {
        "pipeline_model_parallel_size": "4",
        "num_layers_per_virtual_pipeline_stage": "1",
        "global_batch_size": "6",
    },
    "positions run on": {"neat_pack": "", "reset_attention_mask": ""},
    "positions begin again": {"neat_pack": "", "reset_position_ids": ""},
    "hidden dropout": {"hidden_dropout": "0.1"},
    "gpt2": {
        "normalization": "LayerNorm",
        "position_embedding_type": "learned_absolute",
        "max_position_embeddings": "128",
        "kv_channels": "7",  # nothing is rotated in pairs
    },
    "reduce without gather": {"overlap_grad_reduce": "", "pipeline_model_parallel_size": "2"},
    "a save at the end alone": {"save": "out"},
    "evaluation without data": {"split": "100,0,0", "eval_interval": "5", "eval_iters": "10"},
    "evaluation without a path": {"data_path": None, "split": None, "train_data_path": "a", "eval_iters": "3"},
    "uneven stages": {"num_layers": "5", "num_layer_list": "2,3", "pipeline_model_parallel_size": "2"},
    "activation functions alone": {
        "recompute_granularity": "full",
        "recompute_method": "block",
        "recompute_activation_function": "",
        "recompute_activation_function_num_layers": "2",
    },
    "spec of Qwen3": {"spec": "mindspeed_llm.tasks.models.spec.qwen3_spec layer_spec", "qk_layernorm": ""},
    "rope of Llama 3": {
        "rope_scaling_type": "llama3",
        "rope_scaling_factor": "8.0",
        "low_freq_factor": "1.0",
        "high_freq_factor": "4.0",
        "original_max_position_embeddings": "8192",
    },
    "no evaluation": {"split": "100,0,0", "eval_interval": "5", "eval_iters": "0"},
    "nothing said of evaluation": {"split": "100,0,0"},
    "fine-tuning of random weights": {"finetune": ""},
    "epochs": {"train_iters": None, "train_epochs": "2", "lr_warmup_iters": "3"},
    "its own paths": {"data_path": None, "split": None, "train_data_path": "a b", "valid_data_path": "c"},
    "weights": {"data_path": "0.3 a 0.7 b"},
    "context parallelism of one": {"context_parallel_size": "1"},
    "the default batch": {"global_batch_size": None},
}
