"""pretrain_gpt.py as a whole, on small packed files: runs, stops and goes on, checkpoints in and out, refusals."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from thread_counts import threads_after_job
from time_limits import HANG_SECONDS
from tiny import SHAPE, VOCABULARY
from tiny_runs import ROOT, RUN, SEQ_LENGTH, pretrain, stopped_run, train_records, write_files

from mindspeed_llm.errors import CheckpointError, ConfigError, UserError

START_TABLE = ["start", "machines", "layout", "versions", "attention", "operators", "data"]


@pytest.fixture(scope="module")
def neat(tmp_path_factory) -> str:
    return str(write_files(tmp_path_factory.mktemp("neat") / "data"))


@pytest.fixture(scope="module")
def finished(neat, tmp_path_factory) -> Path:
    """--save folder of a run of six iterations that saved after three."""
    save = tmp_path_factory.mktemp("finished") / "checkpoint"
    with pytest.MonkeyPatch.context() as monkeypatch:
        pretrain(monkeypatch, "--data-path", neat, "--save", str(save), "--save-interval", "3")
    return save


def test_a_run_leaves_checkpoints_figures_and_pictures(finished):
    assert (finished / "latest_checkpointed_iteration.txt").read_text().strip() == "6"
    assert sorted(path.name for path in finished.glob("iter_*")) == ["iter_0000003", "iter_0000006"]
    records = train_records(finished / "run")
    assert list(records) == [1, 2, 3, 4, 5, 6]
    for key in ("loss", "learning_rate", "grad_norm", "trained_tokens_per_second", "fill", "step_seconds"):
        assert all(record[key] >= 0 for record in records.values()), key
    assert records[1]["fill"] == pytest.approx(27 / 32)
    assert records[6]["loss"] < records[1]["loss"]
    for picture in ("loss.png", "packing.png"):
        assert (finished / "run" / picture).read_bytes().startswith(b"\x89PNG")


def test_held_out_packs_are_evaluated_before_and_after(finished):
    lines = [json.loads(line) for line in (finished / "run" / "metrics.jsonl").read_text().splitlines()]
    evaluations = [(line["iteration"], line["split"]) for line in lines if line["kind"] == "eval"]
    assert evaluations == [(0, "valid"), (6, "valid")]


def test_the_same_command_resumes_exactly(finished, neat, monkeypatch, tmp_path, capsys):
    save = stopped_run(finished, tmp_path / "checkpoint", 3)
    pretrain(monkeypatch, "--data-path", neat, "--save", str(save), "--save-interval", "3")
    assert "resuming from" in capsys.readouterr().out
    straight, resumed = train_records(finished / "run"), train_records(save / "run")
    assert list(resumed) == [4, 5, 6]
    for iteration in resumed:
        for key in ("loss", "grad_norm", "learning_rate", "consumed_samples", "trained_tokens"):
            assert resumed[iteration][key] == straight[iteration][key], (iteration, key)


def test_process_groups_of_a_finished_run_are_gone(neat, monkeypatch, tmp_path):
    """A distributed optimizer's views of the weights have autograd nodes that lead back to the model."""
    counts = []
    for run in range(3):
        flags = ("--train-iters", "1", "--eval-iters", "0", "--run-dir", str(tmp_path / str(run)))
        pretrain(monkeypatch, "--data-path", neat, "--use-distributed-optimizer", *flags)
        counts.append(threads_after_job())
    assert counts[-1] <= 2 * counts[0] and counts[-1] <= counts[1], counts


def test_a_finished_run_is_left_alone(finished, neat, monkeypatch, tmp_path, capsys):
    save = tmp_path / "checkpoint"
    shutil.copytree(finished, save)
    pretrain(monkeypatch, "--data-path", neat, "--save", str(save), "--save-interval", "3")
    assert "complete" in capsys.readouterr().out
    assert train_records(save / "run") == train_records(finished / "run")


def test_finetune_takes_the_weights_and_starts_at_zero(finished, neat, monkeypatch, tmp_path):
    save = tmp_path / "next"
    pretrain(monkeypatch, "--data-path", neat, "--load", str(finished), "--finetune", "--save", str(save))
    records = train_records(save / "run")
    assert list(records) == [1, 2, 3, 4, 5, 6]
    assert records[1]["loss"] < train_records(finished / "run")[3]["loss"]


def test_load_and_save_may_name_one_folder(finished, neat, monkeypatch, tmp_path):
    """The idiom of the scripts: the folder holds the weights to start from, and then this run's own checkpoints."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(finished, folder)
    shutil.rmtree(folder / "run")
    flags = ("--data-path", neat, "--load", str(folder), "--save", str(folder), "--finetune", "--seed", "77")
    with pytest.raises(CheckpointError, match="would overwrite iter_0000006"):
        pretrain(monkeypatch, *flags)
    flags = (*flags, "--train-iters", "4", "--save-interval", "4")
    pretrain(monkeypatch, *flags)
    assert list(train_records(folder / "run")) == [1, 2, 3, 4]
    (folder / "run" / "metrics.jsonl").unlink()
    pretrain(monkeypatch, *flags[:-4], "--train-iters", "5", "--save-interval", "4")
    assert list(train_records(folder / "run")) == [5], "the second start goes on with this run's own checkpoint"


def test_no_save_optim_concerns_the_last_checkpoint_only(neat, monkeypatch, tmp_path):
    save = tmp_path / "checkpoint"
    flags = ("--data-path", neat, "--save", str(save), "--save-interval", "3", "--no-save-optim", "--no-save-rng")
    pretrain(monkeypatch, *flags)
    kept = {path.name: json.loads((path / "run.json").read_text()) for path in save.glob("iter_*")}
    assert kept["iter_0000003"]["has_optimizer"] and kept["iter_0000003"]["has_rng"]
    assert not kept["iter_0000006"]["has_optimizer"] and not kept["iter_0000006"]["has_rng"]
    assert sum(file.stat().st_size for file in (save / "iter_0000006").iterdir()) < 0.5 * sum(
        file.stat().st_size for file in (save / "iter_0000003").iterdir()
    )
    with pytest.raises(CheckpointError, match="without its optimizer state"):
        pretrain(monkeypatch, *flags, "--train-iters", "7")


def test_another_runs_folder_is_refused(finished, neat, monkeypatch):
    with pytest.raises(CheckpointError, match=r"another run.*--seed"):
        pretrain(monkeypatch, "--data-path", neat, "--save", str(finished), "--seed", "5")


def test_a_start_without_load_is_reported(neat, monkeypatch, tmp_path, capsys):
    pretrain(monkeypatch, "--data-path", neat, "--run-dir", str(tmp_path / "run"), "--train-iters", "1")
    said = capsys.readouterr().out
    assert "starting from random weights" in said
    table = {line.split("  ")[0]: line for line in said.splitlines()}
    assert [name for name in table if name in START_TABLE] == START_TABLE
    assert "1 × cpu (gloo)" in table["machines"] and "megatron-core 0.16" in table["versions"]
    assert "segments: segments supports torch.float32 on cpu" in table["attention"]
    assert table["operators"].endswith("fused: torch._fused_adamw_")


@pytest.mark.parametrize(
    ("flags", "error", "message"),
    [
        (("--load", "nowhere"), ConfigError, "--load nowhere: no such directory"),
        (("--load", "Qwen/Qwen2.5-7B"), ConfigError, "'hf download Qwen/Qwen2.5-7B --local-dir Qwen2.5-7B'"),
        (("--seq-length", "16"), UserError, "--seq-length"),
        (("--prompt-type", "llama2"), ConfigError, "--prompt-type"),
        (("--data-path", "nowhere"), ConfigError, "nowhere"),
    ],
)
def test_refused_before_anything_starts(neat, monkeypatch, tmp_path, flags, error, message):
    run_dir = tmp_path / "run"
    with pytest.raises(error, match=message):
        pretrain(monkeypatch, "--data-path", neat, "--run-dir", str(run_dir), *flags)
    assert not run_dir.exists()


def test_a_vocabulary_that_the_data_exceeds_is_refused_before_any_process_group(neat, monkeypatch):
    monkeypatch.setattr("torch.distributed.init_process_group", lambda *_, **__: pytest.fail("a process group started"))
    run = RUN.replace(f"--vocab-size {VOCABULARY}", f"--padded-vocab-size {VOCABULARY - 1}")
    with pytest.raises(ConfigError, match=f"--padded-vocab-size {VOCABULARY - 1}"):
        pretrain(monkeypatch, "--data-path", neat, run=run)


def test_neat_pack_on_plain_files_is_refused(monkeypatch, tmp_path):
    plain = write_files(tmp_path / "plain", neat=False)
    with pytest.raises(ConfigError, match="--neat-pack"):
        pretrain(monkeypatch, "--data-path", str(plain))


def test_unpacked_files_are_padded(monkeypatch, tmp_path):
    """One sample a row, padded to seq_length or, with --variable-seq-lengths, to the longest: the same losses."""
    files = write_files(tmp_path / "unpacked", packed=False)
    run = RUN.replace("--neat-pack --reset-position-ids ", "")
    losses, slots = [], []
    for extra in ((), ("--variable-seq-lengths",)):
        run_dir = tmp_path / f"run{len(extra)}"
        pretrain(monkeypatch, "--data-path", str(files), "--run-dir", str(run_dir), *extra, run=run)
        records = train_records(run_dir).values()
        losses.append([record["loss"] for record in records])
        slots.append([record["slots"] for record in records])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert all(count == 4 * SEQ_LENGTH for count in slots[0])
    assert sum(slots[1]) < sum(slots[0])


def test_length_grouped_batches_have_less_padding_and_resume_exactly(monkeypatch, tmp_path):
    files = write_files(tmp_path / "unpacked", packed=False, count=40)
    run = RUN.replace("--neat-pack --reset-position-ids ", "") + " --variable-seq-lengths --pad-to-multiple-of 1"
    flags = ("--data-path", str(files), "--split", "100,0,0", "--eval-iters", "0", "--train-iters", "12")
    figures = {}
    for name, extra in (("at random", ()), ("grouped", ("--length-grouped",))):
        pretrain(monkeypatch, *flags, *extra, "--run-dir", str(tmp_path / name), run=run)
        figures[name] = train_records(tmp_path / name)
    fills = {
        name: sum(r["tokens"] for r in records.values()) / sum(r["slots"] for r in records.values())
        for name, records in figures.items()
    }
    assert fills["grouped"] > fills["at random"] + 0.1 and fills["grouped"] > 0.9
    save = tmp_path / "checkpoint"
    for iterations in ("5", "12"):  # the epoch ends after ten
        going = (*flags, "--length-grouped", "--lr-decay-iters", "12", "--save", str(save), "--train-iters", iterations)
        pretrain(monkeypatch, *going, run=run)
    resumed = train_records(save / "run")
    assert {i: record["loss"] for i, record in resumed.items()} == {
        i: record["loss"] for i, record in figures["grouped"].items()
    }


def test_epochs_are_complete_with_and_without_padded_samples(neat, monkeypatch, tmp_path, capsys):
    """20 packs, 3 a batch, --train-epochs 2: 14 iterations of 3 with --padded-samples; without it 40 packs are trained
    on, so the fourteenth has one. Plain --train-samples 40 leaves that one out."""
    batch = ("--micro-batch-size", "1", "--global-batch-size", "3", "--split", "100,0,0", "--eval-iters", "10")
    run = RUN.replace("--train-iters 6", "--train-epochs 2")
    samples = {}
    for name, extra in (("padded", ("--padded-samples",)), ("exact", ())):
        run_dir = tmp_path / name
        pretrain(monkeypatch, "--data-path", neat, "--run-dir", str(run_dir), *batch, *extra, run=run)
        samples[name] = [record["samples"] for record in train_records(run_dir).values()]
        out = capsys.readouterr().out
        assert ("the last batch has 1 of 3 packs: --train-epochs ends there" in out) == (name == "exact")
        assert "--eval-iters 10: nothing is evaluated, because --split 100,0,0 gives validation no share" in out
    assert samples == {"padded": [12] * 14, "exact": [12] * 13 + [4]}, "four samples a pack"


# pretrain_gpt.py where rank 0 starts last, as happens on a busy machine.
LATE_RANK_ZERO = """
import os, sys, time
time.sleep(4 if os.environ["RANK"] == "0" else 0)
import pretrain_gpt
from mindspeed_llm.entry_point import run_program
sys.exit(run_program(pretrain_gpt.main, "pretrain_gpt.py"))
"""


def torchrun(program: Path, *flags: str, ranks: int = 2) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    command += [str(program), *RUN.split(), *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, timeout=HANG_SECONDS, env=environment, check=False)


def test_a_users_error_is_printed_once(neat, tmp_path):
    program = tmp_path / "late.py"
    program.write_text(LATE_RANK_ZERO, "utf-8")
    done = torchrun(program, "--data-path", neat, "--hiden-size", "64", "--global-batch-size", "5")
    assert done.returncode == 1, "torchrun's own status"
    ours = [line for line in done.stderr.splitlines() if line.startswith("pretrain_gpt.py: error:")]
    assert len(ours) == 2 and "--hidden-size" in ours[0] and "--global-batch-size" in ours[1]
    assert "exitcode  : 2" in done.stderr, "the ranks end with status 2"
    assert "Traceback" not in done.stderr.split("torch/distributed")[0], "none of ours; torchrun prints its own"


@pytest.mark.parametrize("program", ["pretrain_gpt.py", "posttrain_gpt.py"])
def test_status_of_a_single_process(program, neat):
    done = subprocess.run(
        [sys.executable, str(ROOT / program), *RUN.split(), "--data-path", neat, "--no-such-flag"],
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"{program}: error: ") and "Traceback" not in done.stderr


class TestHuggingFace:
    """--load of a Hugging Face folder and --save-hf; tests/test_conversion_parity.py compares the numbers."""

    RUN = RUN.replace(SHAPE, "--bf16")

    @pytest.fixture
    def model(self, tmp_path):
        pytest.importorskip("transformers", reason="needs transformers, which is not installed")
        from hugging_face_models import SHAPE as TINY
        from transformers import Qwen3Config, Qwen3ForCausalLM

        config = Qwen3Config(**{**TINY, "vocab_size": VOCABULARY, "head_dim": 32, "tie_word_embeddings": True})
        Qwen3ForCausalLM(config).bfloat16().save_pretrained(tmp_path / "hf")
        (tmp_path / "hf" / "tokenizer_config.json").write_text("{}")
        (tmp_path / "hf" / "modeling_evil.py").write_text("raise SystemExit")
        return tmp_path / "hf"

    def test_from_one_folder_to_another(self, tmp_path, monkeypatch, model, capsys):
        from safetensors.torch import load_file
        from transformers import AutoModelForCausalLM

        data = write_files(tmp_path / "data")
        words = ("--data-path", str(data), "--load", str(model), "--save", str(tmp_path / "save"))
        words += ("--save-hf", str(tmp_path / "out"))
        pretrain(monkeypatch, *words, run=self.RUN)
        assert "weights from the Hugging Face folder" in capsys.readouterr().out
        before, after = (load_file(folder / "model.safetensors") for folder in (model, tmp_path / "out"))
        assert before.keys() == after.keys()
        moved = [name for name in before if not before[name].equal(after[name])]
        assert len(moved) > len(before) // 2
        assert max(float((before[name] - after[name]).abs().max()) for name in before) < 0.02  # 6 steps of 1e-3
        assert (tmp_path / "out" / "tokenizer_config.json").exists()
        assert not (tmp_path / "out" / "modeling_evil.py").exists()
        AutoModelForCausalLM.from_pretrained(tmp_path / "out")
        # The same command again: the run is complete, and its export is made anew.
        pretrain(monkeypatch, *words, run=self.RUN)
        assert "the run is complete" in capsys.readouterr().out

    def test_the_converted_checkpoint_starts_the_same_run(self, tmp_path, monkeypatch, model):
        from mindspeed_llm.arguments.convert_arguments import parse_convert_arguments
        from mindspeed_llm.arguments.loaded_shape import find_loaded_shape
        from mindspeed_llm.conversion import convert

        data = write_files(tmp_path / "data")
        shape = find_loaded_shape(["--load", str(model)])
        assert shape is not None
        convert(parse_convert_arguments(["--load-dir", str(model), "--save-dir", str(tmp_path / "mcore")]))
        words = ("--data-path", str(data), "--train-iters", "2")
        pretrain(monkeypatch, *words, "--load", str(model), "--run-dir", str(tmp_path / "a"), run=self.RUN)
        words += ("--load", str(tmp_path / "mcore"), "--finetune", "--run-dir", str(tmp_path / "b"))
        pretrain(monkeypatch, *words, *shape.missing_flags([]), run=self.RUN)
        # MindSpeed-LLM's own layout, without a config.json beside it, on another layout than it was written for.
        flags = ["--ckpt-format", "torch", "--target-tensor-parallel-size", "2"]
        ranks = convert(
            parse_convert_arguments(["--load-dir", str(model), "--save-dir", str(tmp_path / "ranks"), *flags])
        )
        shutil.rmtree(ranks / "hugging_face")
        words = (*words[:-4], str(tmp_path / "ranks"), "--finetune", "--run-dir", str(tmp_path / "c"))
        pretrain(monkeypatch, *words, *shape.missing_flags([]), run=self.RUN)
        lines = [(tmp_path / run / "metrics.jsonl").read_text().splitlines() for run in ("a", "b", "c")]
        first, second, third = ([json.loads(line).get("loss") for line in run] for run in lines)
        assert first == second == third and len([loss for loss in first if loss]) >= 2

    def test_a_shape_that_disagrees_is_refused(self, tmp_path, monkeypatch, model):
        data = write_files(tmp_path / "data")
        with pytest.raises(ConfigError, match="--num-layers 5"):
            pretrain(monkeypatch, "--data-path", str(data), "--load", str(model), "--num-layers", "5", run=self.RUN)

    def test_from_random_weights(self, tmp_path, monkeypatch):
        pytest.importorskip("transformers", reason="needs transformers, which is not installed")
        from transformers import AutoModelForCausalLM

        data = write_files(tmp_path / "data")
        words = ("--data-path", str(data), "--save", str(tmp_path / "save"), "--save-hf", str(tmp_path / "out"))
        pretrain(monkeypatch, *words)
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
        assert model.config.model_type == "qwen2" and model.config.vocab_size == VOCABULARY

    def test_a_target_with_other_things_is_refused_before_training(self, tmp_path, monkeypatch):
        data = write_files(tmp_path / "data")
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "thesis.tex").write_text("years of work")
        words = ("--data-path", str(data), "--save", str(tmp_path / "save"), "--save-hf", str(tmp_path / "out"))
        with pytest.raises(ConfigError, match="is not empty"):
            pretrain(monkeypatch, *words)
        assert not (tmp_path / "save").exists()
        with pytest.raises(ConfigError, match=r"--save-hf .* needs --save"):
            pretrain(monkeypatch, "--data-path", str(data), "--save-hf", str(tmp_path / "elsewhere"))
