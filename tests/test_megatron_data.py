"""The data of a run inside Megatron: wrong tokenizers and templates, and what Megatron's iterators yield."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest
from small_tokenizers import byte_level_folder
from tiny import VOCABULARY
from tiny_runs import SEQ_LENGTH, write_files

from mindspeed_llm.errors import ConfigError, UserError
from mindspeed_llm.megatron.megatron_versions import MegatronVersion


def arguments(prefix: Path, **values: object) -> Namespace:
    """Return Megatron's parsed arguments, as far as `prepare_run` of megatron.core's loop reads them."""
    import torch

    defaults = {
        "data_path": [str(prefix)], "train_data_path": None, "valid_data_path": None, "test_data_path": None,
        "split": "80,20,0", "seq_length": SEQ_LENGTH, "reset_position_ids": True, "reset_attention_mask": False,
        "is_instruction_dataset": True, "neat_pack": True, "padded_samples": False, "no_shuffle": False,
        "prompt_type": "qwen", "tokenizer_type": "NullTokenizer", "tokenizer_model": None, "attention_dropout": 0.0,
        "seed": 1, "eval_iters": 1, "padded_vocab_size": VOCABULARY, "hidden_size": 64, "num_attention_heads": 4,
        "kv_channels": None, "params_dtype": torch.float32,
    }  # fmt: skip
    return Namespace(**{**defaults, **values})


def refused(args: Namespace, version: str = "0.16.1") -> str:
    from mindspeed_llm.megatron.packed_run import prepare_run

    with pytest.raises(UserError) as error:
        prepare_run(args, MegatronVersion(version))
    problems = error.value.problems if isinstance(error.value, ConfigError) else [str(error.value)]
    assert len(problems) == 1
    return problems[0]


def test_packs_of_another_tokenizer_are_refused(tmp_path: Path) -> None:
    """Under Megatron's flags: the tokenizer of --tokenizer-model, or a model with fewer rows than its tokens."""
    prefix = write_files(tmp_path / "data")
    folder = byte_level_folder(tmp_path / "tokenizer")
    found = refused(arguments(prefix, tokenizer_type="HuggingFaceTokenizer", tokenizer_model=str(folder)))
    assert "was made with another tokenizer" in found and str(prefix) in found
    found = refused(arguments(prefix, tokenizer_type="PretrainedFromHF", tokenizer_name_or_path=str(folder)))
    assert "was made with another tokenizer" in found
    found = refused(arguments(prefix, padded_vocab_size=VOCABULARY - 1))
    assert f"the model has {VOCABULARY - 1} rows" in found and f"{VOCABULARY} tokens" in found
    assert "--prompt-type llama3" in refused(arguments(prefix, prompt_type="llama3"))
    assert "--seq-length 64" in refused(arguments(prefix, seq_length=64))
    assert "add --neat-pack" in refused(arguments(prefix, neat_pack=False))


def test_a_run_is_prepared_whatever_the_dataloader_type(tmp_path: Path) -> None:
    from mindspeed_llm.megatron.packed_run import prepare_run

    args = arguments(write_files(tmp_path / "data"), dataloader_type="single")
    run = prepare_run(args, MegatronVersion("0.16.1"))
    assert args.dataloader_type == "external" and run.vocabulary == VOCABULARY
    assert len(run.datasets.train) == 16 and run.datasets.valid is not None and len(run.datasets.valid) == 4


def test_checkpoints_of_ours_that_megatron_cannot_load(tmp_path: Path) -> None:
    """They hold no `args`: 0.12.1 cannot load them, later versions load the weights with two flags."""
    import torch

    from mindspeed_llm.megatron.packed_run import prepare_run

    checkpoint = tmp_path / "saved" / "iter_0000003"
    checkpoint.mkdir(parents=True)
    (tmp_path / "saved" / "latest_checkpointed_iteration.txt").write_text("3")
    torch.save({"optimizer": {}, "checkpoint_version": 3.0}, checkpoint / "common.pt")
    common = {"load": str(tmp_path / "saved"), "dist_ckpt_strictness": "log_all", "finetune": True}
    args = arguments(write_files(tmp_path / "data"), **common)
    prepare_run(args, MegatronVersion("0.16.1"))
    found = refused(args, "0.12.1")
    assert f"--load {tmp_path / 'saved'}" in found and "without the `args` that Megatron-LM 0.12.1 reads" in found
    args.finetune = False
    assert found != refused(args) and "add --finetune --dist-ckpt-strictness log_all" in refused(args)
    torch.save({"args": Namespace(seq_length=1)}, checkpoint / "common.pt")  # as Megatron saves it
    prepare_run(args, MegatronVersion("0.12.1"))
