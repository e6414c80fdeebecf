"""Pretraining as a whole on one process: from raw text to a model, and what a command takes from a checkpoint."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from document_files import EOD, random_documents, write_documents, write_plain
from preprocess_command import Command
from raw_data_runs import CONFIG
from small_tokenizers import byte_level_folder
from tiny import SHAPE, VOCABULARY
from tiny_runs import ROOT, pretrain, stopped_run, train_records

from mindspeed_llm.errors import CheckpointError, ConfigError, DataError

S = 32
RUN = (
    f"{SHAPE} --device cpu --stage pretrain --no-save-model "
    f"--seq-length {S} --micro-batch-size 2 --global-batch-size 4 --lr 1e-2 "
    "--min-lr 1e-3 --lr-decay-style cosine --train-iters 6 --log-interval 1 --split 90,10,0 --eval-iters 1"
)
TEXT = ["Two rivers meet below the old town. ", "The harbour lies beside them. ", "Boats wait for the evening tide. "]


def eval_records(run_dir: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "eval"]


@pytest.fixture(scope="module")
def documents(tmp_path_factory) -> str:
    return write_documents(tmp_path_factory.mktemp("documents") / "a", random_documents(40))


@pytest.fixture(scope="module")
def finished(documents, tmp_path_factory) -> Path:
    """--save folder of a run of six iterations, in mid-epoch at its third, where it saved."""
    save = tmp_path_factory.mktemp("finished") / "checkpoint"
    with pytest.MonkeyPatch.context() as monkeypatch:
        pretrain(monkeypatch, "--data-path", documents, "--save", str(save), "--save-interval", "3", run=RUN)
    return save


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    """A folder with raw text, a tokenizer and a config.json of a Qwen2.5-shaped model."""
    folder = tmp_path_factory.mktemp("text")
    rows = [{"text": TEXT[number % 3] * (1 + number % 5)} for number in range(120)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    byte_level_folder(folder / "tokenizer")
    (folder / "config").mkdir()
    config = {**CONFIG, "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "tie_word_embeddings": False}
    del config["head_dim"]
    (folder / "config" / "config.json").write_text(json.dumps(config))
    return folder


def text_run(text: Path, data: Path | str, *more: str) -> tuple[str, tuple[str, ...]]:
    """Return a run on the tokenizer and data of a folder, and its flags."""
    run = RUN.removeprefix(SHAPE)
    tokenizer = ("--tokenizer-type", "PretrainedFromHF", "--tokenizer-name-or-path", str(text / "tokenizer"))
    return run, ("--data-path", str(data), *tokenizer, *more)


@pytest.fixture(scope="module")
def from_text(text) -> Path:
    """--save folder of a run from raw text, preprocessed before, and random weights, with its Hugging Face export."""
    command = Command(text, text / "tokenizer")
    command.input, command.prefix = text / "rows.jsonl", text / "out" / "set"
    command.flags = {
        "--input": str(command.input),
        "--handler-name": "GeneralPretrainHandler",
        "--output-format": "document",
        "--tokenizer-name-or-path": str(text / "tokenizer"),
        "--output-prefix": str(command.prefix),
    }
    command.run()
    run, flags = text_run(text, text / "out" / "set_text_document", "--hf-config-path", str(text / "config"))
    with pytest.MonkeyPatch.context() as monkeypatch:
        pretrain(
            monkeypatch, *flags, "--train-iters", "12", "--save", str(text / "save"), "--save-hf", str(text / "hf"),
            run=run,
        )  # fmt: skip
    return text / "save"


def test_from_raw_text_and_random_weights_to_a_hugging_face_folder(from_text, text):
    records = train_records(from_text / "run")
    assert len(records) == 12
    assert records[1]["loss"] == pytest.approx(math.log(320), rel=0.05), "random weights know nothing"
    assert records[12]["loss"] < 0.8 * records[1]["loss"]
    assert all(record["fill"] == record["trained_share"] == 1 for record in records.values())
    evaluations = eval_records(from_text / "run")
    assert [line["iteration"] for line in evaluations] == [0, 12]
    for line in evaluations:
        assert line["perplexity"] == pytest.approx(math.exp(line["loss"]), rel=1e-6)
        assert "sources" not in line
    config = json.loads((text / "hf" / "config.json").read_text())
    assert (config["num_hidden_layers"], config["vocab_size"]) == (2, 320)
    assert (from_text / "run" / "packing.png").exists() and (from_text / "run" / "loss.png").exists()


def test_continued_from_a_hugging_face_folder(from_text, text, monkeypatch, tmp_path):
    run, flags = text_run(text, text / "out" / "set_text_document")
    pretrain(
        monkeypatch, *flags, "--load", str(text / "hf"), "--finetune", "--save", str(tmp_path / "save"), "--lr", "1e-4",
        "--min-lr", "0", run=run,
    )  # fmt: skip
    before = eval_records(from_text / "run")[-1]
    after = eval_records(tmp_path / "save" / "run")[0]
    assert after["loss"] == pytest.approx(before["loss"], rel=1e-6) and after["iteration"] == 0


def test_raw_text_in_the_training_command(from_text, text, monkeypatch, tmp_path):
    run, flags = text_run(text, text / "rows.jsonl", "--hf-config-path", str(text / "config"))
    more = ("--handler-name", "GeneralPretrainHandler", "--train-iters", "2", "--lr-decay-iters", "12")
    pretrain(monkeypatch, *flags, *more, "--save", str(tmp_path / "save"), run=run)
    straight = train_records(from_text / "run")
    assert {i: r["loss"] for i, r in train_records(tmp_path / "save" / "run").items()} == {
        i: straight[i]["loss"] for i in (1, 2)
    }
    assert len(list((tmp_path / "save" / "packed_data").glob("packed-*/rows_text_document.bin"))) == 1


def test_the_same_command_resumes_exactly_in_mid_epoch(finished, documents, monkeypatch, tmp_path):
    save = stopped_run(finished, tmp_path / "checkpoint", 3)
    pretrain(monkeypatch, "--data-path", documents, "--save", str(save), "--save-interval", "3", run=RUN)
    straight, resumed = train_records(finished / "run"), train_records(save / "run")
    assert list(resumed) == [4, 5, 6]
    for iteration in resumed:
        for key in ("loss", "grad_norm", "learning_rate", "consumed_samples", "trained_tokens"):
            assert resumed[iteration][key] == straight[iteration][key], (iteration, key)
    assert eval_records(save / "run")[-1]["loss"] == eval_records(finished / "run")[-1]["loss"]
    # Weights and optimizer state, to the bit.
    for file in (finished / "iter_0000006").glob("*.distcp"):
        assert (save / "iter_0000006" / file.name).read_bytes() == file.read_bytes()


def test_other_documents_are_refused_on_resume(finished, monkeypatch, tmp_path):
    other = write_documents(tmp_path / "a", random_documents(41))
    with pytest.raises(CheckpointError, match="its files contain other data"):
        pretrain(monkeypatch, "--data-path", other, "--save", str(finished), "--train-iters", "7", run=RUN)


def test_the_schedule_of_the_checkpoint_or_of_the_flags(finished, documents, monkeypatch, tmp_path, capsys):
    straight = train_records(finished / "run")
    flags = ("--data-path", documents, "--lr", "5e-2", "--train-iters", "8", "--eval-iters", "0")
    kept = stopped_run(finished, tmp_path / "kept" / "checkpoint", 3)
    pretrain(monkeypatch, *flags, "--save", str(kept), "--use-checkpoint-opt_param-scheduler", run=RUN)
    said = capsys.readouterr().out
    assert "--lr: 0.01 of the checkpoint is kept (--use-checkpoint-opt_param-scheduler)" in said
    assert "from here on" not in "".join(line for line in said.splitlines() if line.startswith("--lr"))
    records = train_records(kept / "run")
    assert [records[i]["learning_rate"] for i in (4, 5, 6)] == [straight[i]["learning_rate"] for i in (4, 5, 6)]
    assert records[8]["learning_rate"] == pytest.approx(1e-3), "the decay has the length of the first run"
    overridden = stopped_run(finished, tmp_path / "overridden" / "checkpoint", 3)
    pretrain(monkeypatch, *flags, "--save", str(overridden), "--override-opt_param-scheduler", run=RUN)
    assert train_records(overridden / "run")[4]["learning_rate"] > 3e-2


def test_wsd_and_a_warm_up_in_samples(documents, monkeypatch, tmp_path):
    schedule = [
        "--lr-decay-style",
        "WSD",
        "--lr-wsd-decay-style",
        "linear",
        "--lr-wsd-decay-samples",
        "16",
        "--lr-warmup-samples",
        "8",
    ]
    run = RUN.replace("--train-iters 6", "--train-samples 40").replace("--lr-decay-style cosine", "")
    pretrain(monkeypatch, "--data-path", documents, *schedule, "--run-dir", str(tmp_path), "--eval-iters", "0", run=run)
    rates = [record["learning_rate"] for record in train_records(tmp_path).values()]
    samples = np.arange(0, 40, 4)
    expected = np.where(
        samples < 8, 1e-2 * samples / 8, np.where(samples <= 24, 1e-2, 1e-2 - 9e-3 * (samples - 24) / 16)
    )
    assert rates == pytest.approx(expected.tolist(), rel=1e-6)


def test_held_out_perplexity_by_source(documents, monkeypatch, tmp_path, capsys):
    other = write_documents(tmp_path / "b", [np.full(30, 7) for _ in range(40)])
    run_dir = tmp_path / "run"
    pretrain(
        monkeypatch, "--data-path", "0.75", documents, "0.25", other, "--eval-iters", "3", "--run-dir", str(run_dir),
        "--loss-normalization", "sample", "--reset-attention-mask", run=RUN,
    )  # fmt: skip
    first, last = eval_records(run_dir)
    for line in (first, last):
        sources = line["sources"]
        assert list(sources) == [documents, other]
        tokens = [sources[name]["trained_tokens"] for name in sources]
        assert sum(tokens) == line["trained_tokens"] and min(tokens) > 0
        losses = [sources[name]["loss"] for name in sources]
        assert line["perplexity"] == pytest.approx(math.exp(np.average(losses, weights=tokens)), rel=1e-6)
        for name in sources:
            assert sources[name]["perplexity"] == pytest.approx(math.exp(sources[name]["loss"]), rel=1e-6)
    # The second source has one token, which is learnt at once.
    assert last["sources"][other]["loss"] < 0.5 * first["sources"][other]["loss"]
    assert last["sources"][documents]["loss"] > 0.9 * first["sources"][documents]["loss"]
    assert f"valid {other}: loss" in capsys.readouterr().out


def test_initial_weights_are_megatrons(monkeypatch, tmp_path, documents):
    """Normal with --init-method-std, and with std / sqrt(2 · layers) for the output layers of attention and MLP."""
    import torch
    from safetensors.torch import load_file

    run = RUN.replace("--hidden-size 64", "--hidden-size 128").replace("--train-iters 6", "--train-iters 1")
    pretrain(
        monkeypatch, "--data-path", documents, "--save", str(tmp_path / "save"), "--save-hf", str(tmp_path / "hf"),
        "--eval-iters", "0", "--lr", "1e-9", "--min-lr", "0", run=run,
    )  # fmt: skip
    weights = load_file(tmp_path / "hf" / "model.safetensors")
    for name, weight in weights.items():
        if weight.dim() == 2:
            std = 0.05 / math.sqrt(2 * 4) if "o_proj" in name or "down_proj" in name else 0.05
            assert float(weight.std()) == pytest.approx(std, rel=0.05), name
            assert abs(float(weight.mean())) < 0.1 * std, name
        elif name.endswith("bias"):
            assert torch.count_nonzero(weight.abs() > 1e-8) == 0, name


def test_files_of_megatron_lm_need_an_end_token(monkeypatch, tmp_path):
    plain = write_plain(tmp_path / "a", [[each] for each in random_documents(40, ended=False)])
    flags = ("--data-path", plain, "--run-dir", str(tmp_path / "run"), "--train-iters", "1", "--eval-iters", "0")
    with pytest.raises(ConfigError, match=r"the end token of .* is unknown"):
        pretrain(monkeypatch, *flags, run=RUN)
    pretrain(monkeypatch, *flags, "--eod-id", str(EOD), run=RUN)
    assert len(train_records(tmp_path / "run")) == 1


@pytest.mark.parametrize(
    ("flags", "error", "message"),
    [
        (("--seq-length", "5000"), DataError, "--seq-length 5000: a block takes 5,001 tokens"),
        (("--is-instruction-dataset",), ConfigError, "holds documents; leave --is-instruction-dataset out"),
        (("--use-checkpoint-opt_param-scheduler", "--override-opt_param-scheduler"), ConfigError, "keep one of the"),
        (("--hf-config-path", "nowhere", "--load", "x"), ConfigError, "--hf-config-path nowhere is for random weights"),
        (("--eod-id", "3"), ConfigError, "--eod-id 3: the manifest of"),
    ],
)
def test_refused_before_anything_starts(flags, error, message, documents, monkeypatch, tmp_path):
    run_dir = tmp_path / "run"
    with pytest.raises(error, match=message):
        pretrain(monkeypatch, "--data-path", documents, "--run-dir", str(run_dir), *flags, run=RUN)
    assert not run_dir.exists()


def test_a_vocabulary_that_the_ids_exceed_is_refused(documents, monkeypatch, tmp_path):
    run = RUN.replace(f"--vocab-size {VOCABULARY}", f"--padded-vocab-size {VOCABULARY - 1}")
    with pytest.raises(ConfigError, match=f"--padded-vocab-size {VOCABULARY - 1}"):
        pretrain(monkeypatch, "--data-path", documents, run=run)
    plain = write_plain(tmp_path / "a", [[each] for each in random_documents(40)])
    words = ("--data-path", plain, "--eod-id", str(EOD), "--run-dir", str(tmp_path / "run"))
    # Also ids of rows that are padding of the vocabulary: their logits are masked.
    for divisor in ("1", "512"):
        run = RUN.replace(f"--vocab-size {VOCABULARY}", "--vocab-size 100")
        run = run.replace("--make-vocab-size-divisible-by 1", f"--make-vocab-size-divisible-by {divisor}")
        assert f"divisible-by {divisor}" in run
        with pytest.raises(DataError, match=r"block .* outside the vocabulary of 100.*--vocab-size or --padded-v"):
            pretrain(monkeypatch, *words, run=run)


def test_a_data_set_without_a_block_is_reported(documents, monkeypatch, tmp_path, capfd):
    tiny = write_documents(tmp_path / "tiny", [np.arange(1, 5)])
    words = ("--split", "100,0,0", "--train-iters", "1", "--run-dir", str(tmp_path / "run"))
    pretrain(monkeypatch, "--data-path", documents, tiny, *words, run=RUN)
    pretrain(monkeypatch, "--data-path", documents, *words, run=RUN)
    both = "".join(capfd.readouterr())
    assert "tiny_text_document: the 5 tokens of its split train are less than a block, and unused" in both
    # The unused tokens of both runs differ by those of the small data set.
    unused = [int(found.replace(",", "")) for found in re.findall(r"; ([\d,]+) tokens at the end of each epoch", both)]
    assert unused[0] == unused[1] + 5


def test_a_dry_run_counts_the_blocks_of_the_files(documents):
    words = [sys.executable, str(ROOT / "pretrain_gpt.py"), *RUN.split(), "--data-path", documents, "--dry-run"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^run: .*blocks", done.stdout, re.MULTILINE), done.stdout
