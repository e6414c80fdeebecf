"""Answers at evaluations equal those of transformers on every layout, and a run is the same with and without them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from four_ranks import run_four_ranks
from generation_program import (
    ADAPTED,
    LAYOUTS,
    MODEL,
    MORE_LAYOUTS,
    MORE_TRAINED,
    NEW_TOKENS,
    TRAINED,
    arguments_of,
)
from preprocess_command import Command, rows
from safetensors.torch import load_file
from small_tokenizers import MARKERS, byte_level_folder
from thread_counts import assert_threads_end
from tiny import SHAPE
from tiny_runs import RUN, pretrain

from mindspeed_llm.chat import export_chat_template, load_chat_template
from mindspeed_llm.errors import ConfigError

transformers = pytest.importorskip("transformers", reason="transformers is the reference")

QWEN = export_chat_template(load_chat_template("qwen"))
VOCABULARY = 411  # odd, so that two ranks need padding
WORDS = ["the", "old", "harbour", "two", "rivers", "and", "towns", "beside", "them", "Zürich", "42", "way"]


def prompt_rows() -> list[dict[str, Any]]:
    """20 prompts of different lengths: texts of a user, conversations, and expected answers that are wrong."""
    rows: list[dict[str, Any]] = []
    for number in range(20):
        text = " ".join(WORDS[(number * 5 + i) % len(WORDS)] for i in range(1 + number))
        if number % 3 == 0:
            messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}]
            if number % 2:
                messages += [{"role": "assistant", "content": "Yes."}, {"role": "user", "content": "More?"}]
            rows.append({"messages": messages})
        else:
            rows.append({"prompt": text, **({"answer": "no"} if number % 3 == 1 else {})})
    return rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from hugging_face_models import SHAPE

    folder = tmp_path_factory.mktemp("generation")
    base = byte_level_folder(folder / MODEL)
    rope = {"rope_type": "default", "rope_theta": 1e4}
    config = transformers.Qwen2Config(
        **{**SHAPE, "vocab_size": VOCABULARY, "initializer_range": 0.25, "rope_parameters": rope}
    )
    torch.manual_seed(3)
    model = transformers.Qwen2ForCausalLM(config)
    # The end token becomes likely, so that answers end at different lengths.
    end = transformers.AutoTokenizer.from_pretrained(base).convert_tokens_to_ids(MARKERS[2])
    with torch.no_grad():
        model.lm_head.weight[end] *= 1.5
    model.save_pretrained(base)
    (base / "generation_config.json").write_text(json.dumps({"eos_token_id": [end]}))
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n\n" for row in prompt_rows()))
    return folder


def results_of(folder: Path, suite: str) -> dict[str, Any]:
    files = [folder / f"{suite}{rank}.json" for rank in (0, 1)]
    run_four_ranks("generation_program", folder, files, suite, world_size=2)
    own: dict[str, Any] = json.loads(files[0].read_text())
    own["of_rank_1"] = json.loads(files[1].read_text())["trained"]
    return own


@pytest.fixture(scope="module")
def results(folder: Path) -> dict[str, Any]:
    return results_of(folder, "short")


@pytest.fixture(scope="module")
def more_results(folder: Path) -> dict[str, Any]:
    return results_of(folder, "long")


def generated(model: Any, folder: Path, template: str | None = QWEN) -> list[dict[str, Any]]:
    """Answers of transformers' generate, one prompt at a time, as the lines of generations.jsonl have them.

    Args:
        folder: Hugging Face folder of the tokenizer.
        template: its chat template; None for that of the folder.
    """
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ends = [tokenizer.convert_tokens_to_ids(MARKERS[2])]
    lines = []
    for row in prompt_rows():
        messages = row.get("messages") or [{"role": "user", "content": row["prompt"]}]
        inputs = tokenizer.apply_chat_template(
            messages, chat_template=template, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        with torch.no_grad():
            output = model.generate(
                **inputs, max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=ends, pad_token_id=ends[0]
            )
        ids = output[0, inputs["input_ids"].shape[1] :].tolist()
        stopped = ids[-1] in ends
        text = tokenizer.decode(ids[:-1] if stopped else ids, skip_special_tokens=False)
        lines.append({"output": text, "tokens": len(ids), "stopped": stopped})
    return lines


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[dict[str, Any]]:
    return generated(
        transformers.AutoModelForCausalLM.from_pretrained(folder / MODEL, dtype=torch.float32), folder / MODEL
    )


def assert_equal_answers(own: dict[str, Any], expected: list[dict[str, Any]]) -> None:
    lines = own["lines"]
    assert [{key: line[key] for key in ("output", "tokens", "stopped")} for line in lines] == expected
    assert [line["line"] for line in lines] == list(range(1, 40, 2)), "blank lines of the file count"
    for line, row in zip(lines, prompt_rows(), strict=True):
        assert {key: line.get(key) for key in ("prompt", "messages", "answer")} == {
            key: row.get(key) for key in ("prompt", "messages", "answer")
        }
        assert line["exact"] is (False if "answer" in row else None) and line["iteration"] == 5


def test_the_prompts_differ_in_what_is_tested(expected: list[dict[str, Any]]) -> None:
    assert len({line["output"] for line in expected}) >= 15
    stopped = [line["tokens"] for line in expected if line["stopped"]]
    assert 3 <= len(stopped) <= 17 and len(set(stopped)) >= 3, stopped


@pytest.mark.parametrize("name", [name for name in LAYOUTS if not name.startswith("lora")])
def test_answers_of_a_layout_equal_those_of_transformers(
    results: dict[str, Any], expected: list[dict[str, Any]], name: str
) -> None:
    assert_answers_and_figures(results["answers"][name], expected)


@pytest.mark.long
def test_answers_of_more_layouts_equal_those_of_transformers(
    more_results: dict[str, Any], expected: list[dict[str, Any]]
) -> None:
    for name in MORE_LAYOUTS:
        assert_answers_and_figures(more_results["answers"][name], expected)


def assert_answers_and_figures(own: dict[str, Any], expected: list[dict[str, Any]]) -> None:
    assert_equal_answers(own, expected)
    answered = sum("answer" in row for row in prompt_rows())
    assert {key: own["values"][key] for key in ("prompts", "answers", "exact", "tokens")} == {
        "prompts": 20,
        "answers": answered,
        "exact": 0,
        "tokens": sum(line["tokens"] for line in expected),
    }
    assert f"20 prompts | 0 of {answered} answers exact" in own["log"] and "s a pass" in own["log"]
    assert own["values"]["passes"] == NEW_TOKENS


def test_answers_of_an_adapter_equal_those_of_peft(
    results: dict[str, Any], folder: Path, expected: list[dict[str, Any]]
) -> None:
    pytest.importorskip("peft", reason="peft is the reference of LoRA")
    from lora_reference import peft_model

    name = "lora, tp2, sequence parallel"
    settings = arguments_of(folder, *LAYOUTS[name]).lora.settings
    adapted = generated(
        peft_model(folder / MODEL, settings, load_file(folder / ADAPTED), torch.float32).eval(), folder / MODEL
    )
    assert adapted != expected, "the adapter changes the answers"
    assert_equal_answers(results["answers"][name], adapted)


@pytest.mark.parametrize("name", list(TRAINED))
def test_a_run_is_bit_equal_with_and_without_generation(results: dict[str, Any], name: str) -> None:
    for trained in (results["trained"], results["of_rank_1"]):
        without, with_answers = trained[name]
        assert without == with_answers, "losses, weights, moments, random states"


@pytest.mark.long
def test_a_run_on_more_layouts_is_bit_equal_with_and_without_generation(more_results: dict[str, Any]) -> None:
    for trained in (more_results["trained"], more_results["of_rank_1"]):
        for name in MORE_TRAINED:
            without, with_answers = trained[name]
            assert without == with_answers, name


def test_process_groups_of_a_finished_case_are_gone(results: dict[str, Any], folder: Path) -> None:
    assert_threads_end(folder)


def run_of(monkeypatch: pytest.MonkeyPatch, data: Path, folder: Path, *flags: str) -> None:
    run = f"{RUN.replace(SHAPE, '')} --seq-length 256 --train-iters 4 --eval-interval 2 --micro-batch-size 1"
    own = ["--data-path", str(data), "--load", str(folder / MODEL), "--split", "70,30,0", "--seed", "7"]
    tokenizer = ["--tokenizer-type", "PretrainedFromHF", "--tokenizer-name-or-path", str(folder / MODEL)]
    pretrain(monkeypatch, *own, *tokenizer, *flags, run=f"{run} --global-batch-size 1 --hidden-dropout 0.1")


def generations(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "generations.jsonl").read_text("utf-8").splitlines()]


@pytest.mark.long
def test_a_run_writes_what_its_exported_model_says(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = Command(tmp_path, folder / MODEL, rows(40))
    command.run()
    with_answers, without = tmp_path / "with", tmp_path / "without"
    prompts = ["--generate-prompts", str(folder / "prompts.jsonl"), "--generate-tokens", str(NEW_TOKENS)]
    for save, flags in ((with_answers, prompts), (without, [])):
        out = ["--save", str(save / "save"), "--save-hf", str(save / "hf"), "--save-interval", "2"]
        run_of(monkeypatch, command.prefix, folder, *out, *flags)
    weights = [(save / "hf" / "model.safetensors").read_bytes() for save in (with_answers, without)]
    assert weights[0] == weights[1], "bit-equal with and without"
    lines = generations(with_answers / "save" / "run")
    assert [line["iteration"] for line in lines] == [iteration for iteration in (0, 2, 4) for _ in range(20)]
    exported = transformers.AutoModelForCausalLM.from_pretrained(with_answers / "hf", dtype=torch.float32)
    final = generated(exported, with_answers / "hf", template=None)
    assert [{key: line[key] for key in ("output", "tokens", "stopped")} for line in lines[40:]] == final
    metrics = (with_answers / "save" / "run" / "metrics.jsonl").read_text().splitlines()
    figures = [one for line in metrics if (one := json.loads(line))["kind"] == "generation"]
    assert [one["iteration"] for one in figures] == [0, 2, 4] and all(one["seconds"] > 0 for one in figures)
    assert "evaluation after iteration 4 | 20 prompts | 0 of 7 answers exact | " in capsys.readouterr().out
    # A resumed run does not answer at its start again.
    (with_answers / "save" / "latest_checkpointed_iteration.txt").write_text("2\n")
    out = ["--save", str(with_answers / "save")]
    run_of(monkeypatch, command.prefix, folder, *out, *prompts)
    assert [line["iteration"] for line in generations(with_answers / "save" / "run")[60:]] == [4] * 20
    assert [line["output"] for line in generations(with_answers / "save" / "run")[60:]] == [
        line["output"] for line in final
    ]


@pytest.mark.parametrize("method", ["prompt", pytest.param("prefix", marks=pytest.mark.long)])
def test_answers_with_virtual_tokens_equal_those_of_peft(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    pytest.importorskip("peft", reason="peft is the reference of virtual tokens")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "examples"))
    import chat

    command = Command(tmp_path, folder / MODEL, rows(40))
    command.run("--virtual-tokens", "3")
    flags = ["--generate-prompts", str(folder / "prompts.jsonl"), "--generate-tokens", str(NEW_TOKENS), "--lr", "0.1"]
    flags += ["--tuning", method, "--virtual-tokens", "3"]
    out = ["--save", str(tmp_path / "save"), "--save-hf", str(tmp_path / "hf")]
    run_of(monkeypatch, command.prefix, folder, *out, *flags)
    base = transformers.AutoModelForCausalLM.from_pretrained(folder / MODEL, dtype=torch.float32)
    final = generated(chat.with_adapter(base, tmp_path / "hf").eval(), tmp_path / "hf", template=None)
    lines = generations(tmp_path / "save" / "run")[-20:]
    assert [{key: line[key] for key in ("output", "tokens", "stopped")} for line in lines] == final


BAD = [
    '{"prompt": "fine"}',
    '{"prompt": "x", "messages": []}',
    "not json",
    '{"prompt": " "}',
    '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}',
    '{"messages": [{"role": "robot", "content": "a"}]}',
    "[1]",
    '{"prompt": "a", "answer": 5}',
    f'{{"prompt": "{"the old harbour " * 200}"}}',
    '{"prompt": "\\ud800"}',
]


def test_all_faults_of_a_file_are_found_before_the_process_group_starts(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = Command(tmp_path, folder / MODEL, rows(40))
    command.run()
    bad = tmp_path / "bad.jsonl"
    bad.write_text("\n".join(BAD) + "\n")

    def start(*_: Any, **__: Any) -> None:
        raise AssertionError("a process group started")

    monkeypatch.setattr(torch.distributed, "init_process_group", start)
    with pytest.raises(ConfigError) as refused:
        run_of(monkeypatch, command.prefix, folder, "--generate-prompts", str(bad))
    problems = refused.value.problems
    assert [int(problem.split(", line ")[1].split(":")[0]) for problem in problems] == list(range(2, 11))
    reasons = ("either", "not JSON", "empty", "the user", "role", "object", '"answer"', "room for 192", "Unicode")
    for problem, words in zip(problems, reasons, strict=True):
        assert problem.startswith(f"--generate-prompts {bad}, line ") and words in problem
    for content, words in (("\n", "no prompts"), (None, "cannot be read")):
        path = tmp_path / f"{words}.jsonl"
        if content is not None:
            path.write_text(content)
        with pytest.raises(ConfigError, match=words):
            run_of(monkeypatch, command.prefix, folder, "--generate-prompts", str(path))
    with pytest.raises(ConfigError, match="needs a tokenizer"):
        pretrain(monkeypatch, "--data-path", str(command.prefix), "--generate-prompts", str(bad))


def test_prompts_of_pretraining_are_continued_as_they_are(folder: Path, tmp_path: Path) -> None:
    from mindspeed_llm.arguments.pretrain_parser import parse_pretrain_arguments
    from mindspeed_llm.generation import load_prompts
    from mindspeed_llm.tokenization import load_tokenizer_of_command

    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "the old harbour"}\n{"prompt": "two", "kind": "ignored"}\n')
    words = f"--load {folder / MODEL} --seq-length 100 --lr 1 --train-iters 1 --micro-batch-size 1 --data-path none "
    words += "--no-save-model "
    words += f"--tokenizer-type PretrainedFromHF --tokenizer-name-or-path {folder / MODEL} --generate-prompts {path}"
    arguments = parse_pretrain_arguments(words.split(), 1)
    tokenizer = load_tokenizer_of_command(arguments.tokenizer)
    assert tokenizer is not None
    prompts = load_prompts(arguments, [], tokenizer)
    assert [tokenizer.decode(ids) for ids in prompts.ids] == ["the old harbour", "two"]
    path.write_text('{"messages": [{"role": "user", "content": "two"}]}\n')
    with pytest.raises(ConfigError, match='line 1: "messages" need a chat template'):
        load_prompts(arguments, [], tokenizer)
