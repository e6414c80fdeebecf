"""Answers at evaluations equal those of transformers on every layout, and a run is the same with and without them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from four_ranks import run_four_ranks
from generation_program import ADAPTED, LAYOUTS, MODEL, NEW_TOKENS, TRAINED
from small_tokenizers import MARKERS, byte_level_folder
from thread_counts import assert_threads_end

transformers = pytest.importorskip("transformers", reason="transformers is the reference")

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


@pytest.fixture(scope="module")
def results(folder: Path) -> dict[str, Any]:
    run_four_ranks("generation_program", folder, [folder / f"results{rank}.json" for rank in (0, 1)], world_size=2)
    own: dict[str, Any] = json.loads((folder / "results0.json").read_text())
    own["of_rank_1"] = json.loads((folder / "results1.json").read_text())["trained"]
    return own


def generated(model: Any, folder: Path) -> list[dict[str, Any]]:
    """Answers of transformers' generate, one prompt at a time, as the lines of generations.jsonl have them."""
    from mindspeed_llm.chat import export_chat_template, load_chat_template

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / MODEL)
    template = export_chat_template(load_chat_template("qwen"))
    ends = [tokenizer.convert_tokens_to_ids(MARKERS[number]) for number in (2, 0)]
    lines = []
    for row in prompt_rows():
        messages = row.get("messages") or [{"role": "user", "content": row["prompt"]}]
        inputs = tokenizer.apply_chat_template(
            messages, chat_template=template, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        with torch.no_grad():
            output = model.generate(
                **inputs, max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=ends, pad_token_id=ends[1]
            )
        ids = output[0, inputs["input_ids"].shape[1] :].tolist()
        stopped = ids[-1] in ends
        text = tokenizer.decode(ids[:-1] if stopped else ids, skip_special_tokens=False)
        lines.append({"output": text, "tokens": len(ids), "stopped": stopped})
    return lines


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[dict[str, Any]]:
    return generated(transformers.AutoModelForCausalLM.from_pretrained(folder / MODEL, dtype=torch.float32), folder)


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
    own = results["answers"][name]
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

    settings, factors = torch.load(folder / ADAPTED, weights_only=False)
    adapted = generated(peft_model(folder / MODEL, settings, factors, torch.float32).eval(), folder)
    assert adapted != expected, "the adapter changes the answers"
    assert_equal_answers(results["answers"]["lora, tp2, sequence parallel"], adapted)


@pytest.mark.parametrize("name", list(TRAINED))
def test_a_run_is_bit_equal_with_and_without_generation(results: dict[str, Any], name: str) -> None:
    for trained in (results["trained"], results["of_rank_1"]):
        without, with_answers = trained[name]
        assert without == with_answers, "losses, weights, moments, random states"


def test_process_groups_of_a_finished_case_are_gone(results: dict[str, Any], folder: Path) -> None:
    assert_threads_end(folder)
