"""The demo data, tokenizer and model, with which the checks in ci/ run and the quickstart makes its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

DEMO = Path(__file__).parents[1] / "examples" / "demo"


def make(program: str, *words: object) -> str:
    done = subprocess.run(
        [sys.executable, str(DEMO / program), *map(str, words)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("demo") / "deep" / "demo.json"
    make("make_data.py", path)
    return path


@pytest.fixture(scope="module")
def rows(data: Path) -> list[dict[str, Any]]:
    return json.loads(data.read_text("utf-8"))


def test_rows_are_alpaca_style_and_all_different(rows: list[dict[str, Any]]) -> None:
    assert len(rows) == 2400
    assert all(set(row) == {"instruction", "input", "output"} for row in rows)
    assert all(row["instruction"].strip() and row["output"].strip() for row in rows)
    assert len({(row["instruction"], row["input"]) for row in rows}) == len(rows)
    assert not any("{" in row["instruction"] for row in rows), "a wording was not filled in"


def test_lengths_are_skewed_like_real_instruction_data(rows: list[dict[str, Any]]) -> None:
    lengths = np.array([sum(map(len, row.values())) for row in rows])
    assert lengths.min() < 40
    assert 100 < np.median(lengths) < 300
    assert lengths.mean() > 1.3 * np.median(lengths)
    assert 1 <= (lengths > 1500).sum() <= 0.03 * len(lengths)
    assert lengths.max() > 2000


def test_instructions_are_varied(rows: list[dict[str, Any]]) -> None:
    starts = [tuple(row["instruction"].split()[:3]) for row in rows]
    commonest = max(starts.count(start) for start in set(starts))
    assert len(set(starts)) > 120
    assert commonest < 0.08 * len(rows)
    with_input = sum(bool(row["input"]) for row in rows)
    assert 0.5 * len(rows) < with_input < 0.95 * len(rows)


def test_answers_are_right_where_a_second_way_can_check(rows: list[dict[str, Any]]) -> None:
    checked = 0
    for row in rows:
        given = row["input"].split(", ")
        if "descending order" in row["instruction"]:
            assert row["output"] == ", ".join(str(n) for n in sorted(map(int, given))[::-1])
        elif "Which number is the largest" in row["instruction"]:
            assert int(row["output"]) == max(map(int, given))
        elif "What does this program print" in row["instruction"]:
            printed: list[object] = []
            name, start = row["input"].splitlines()[0].split(" = ")
            rounds = int(row["input"].split("range(")[1].split(")")[0])
            sign, step = row["input"].splitlines()[2].split()[-2:]
            value = int(start)
            for _ in range(rounds):
                value = value + int(step) if sign == "+" else value * int(step)
                printed.append(value)
            assert name and row["output"] == "\n".join(map(str, printed))
        else:
            continue
        checked += 1
    assert checked > 20


def test_rows_depend_only_on_the_seed(data: Path, tmp_path: Path) -> None:
    make("make_data.py", tmp_path / "same.json")
    make("make_data.py", tmp_path / "other.json", "--seed", 7)
    assert (tmp_path / "same.json").read_bytes() == data.read_bytes()
    assert (tmp_path / "other.json").read_bytes() != data.read_bytes()


def test_tokenizer_has_the_control_tokens_and_round_trips_text(
    data: Path, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    from tokenizers import Tokenizer

    make("make_tokenizer.py", data, tmp_path / "tokenizer")
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer" / "tokenizer.json"))
    assert 2000 < tokenizer.get_vocab_size() <= 4096
    ids = tokenizer.encode("<|im_start|>user\nhello<|im_end|>\n<|endoftext|>").ids
    last = tokenizer.get_vocab_size()
    assert {last - 3, last - 2, last - 1} <= set(ids)
    assert [tokenizer.token_to_id(m) for m in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")] == [
        last - 3,
        last - 2,
        last - 1,
    ]
    for text in (*(row["output"] for row in rows[:100]), "naïve 汉字\n\n  x\t1 234\r\n'll"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
    config = json.loads((tmp_path / "tokenizer" / "tokenizer_config.json").read_text("utf-8"))
    assert config["eos_token"] == "<|endoftext|>"
    # Qwen2.5 splits numbers into digits.
    assert len(tokenizer.encode("2024").ids) == 4


def test_tokenizer_refuses_a_vocabulary_smaller_than_the_bytes(data: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(DEMO / "make_tokenizer.py"), str(data), str(tmp_path / "t"), "--vocab-size", "100"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "--vocab-size" in done.stderr and not (tmp_path / "t").exists()


def test_transformers_can_use_the_demo_model(data: Path, tmp_path: Path) -> None:
    """Its chat template and tokenizer give the text and ids that training sees; chat.py needs no more."""
    transformers = pytest.importorskip("transformers", reason="needs transformers, which is not installed")
    from mindspeed_llm.chat import Conversation, Turn, load_chat_template
    from mindspeed_llm.tokenization import load_tokenizer

    make("make_tokenizer.py", data, tmp_path / "tokenizer")
    make("make_model.py", tmp_path / "tokenizer", tmp_path / "model")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "model", local_files_only=True)
    messages = [{"role": "user", "content": "Reverse: ab 12  cd"}, {"role": "assistant", "content": "dc  21 ba"}]
    text = theirs.apply_chat_template(messages[:1], add_generation_prompt=True, tokenize=False)
    (turn,) = load_chat_template("qwen").render(Conversation([Turn(messages[0]["content"], "x")]))
    assert text == "".join(span.text for span in turn.prompt)
    ours = load_tokenizer("PretrainedFromHF", str(tmp_path / "model"), None, fast=True)
    assert theirs(text)["input_ids"] == ours.encode_batch([text])[0].tolist()
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", local_files_only=True)
    assert model.config.vocab_size == ours.vocab_size
    said = make("../chat.py", tmp_path / "model", "--prompt", "Reverse: ab", "--max-new-tokens", 3)
    assert said.startswith("\nquestion  Reverse: ab\nmodel     ")
