"""The quickstart's data, table and questions: what would make its result untrue must be found."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


class Programs(NamedTuple):
    """The modules of examples/quickstart."""

    rules: ModuleType
    make_data: ModuleType
    ask: ModuleType
    summary: ModuleType


@pytest.fixture(scope="module")
def programs() -> Iterator[Programs]:
    names = Programs._fields
    sys.path.insert(0, str(EXAMPLES / "quickstart"))
    for name in names:
        sys.modules.pop(name, None)
    yield Programs(*map(importlib.import_module, names))
    sys.path.remove(str(EXAMPLES / "quickstart"))
    for name in names:
        sys.modules.pop(name, None)


class Data(NamedTuple):
    """The files of make_data.py, and what it printed."""

    folder: Path
    documents: list[dict[str, str]]
    rows: list[dict[str, str]]
    questions: list[dict[str, str]]
    printed: str


def made(programs: Programs, monkeypatch: pytest.MonkeyPatch, folder: Path, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["make_data.py", str(folder), *words])
    status: int = programs.make_data.main()
    return status


@pytest.fixture(scope="module")
def data(programs: Programs, tmp_path_factory: pytest.TempPathFactory) -> Data:
    folder = tmp_path_factory.mktemp("quickstart")
    with pytest.MonkeyPatch.context() as monkeypatch, contextlib.redirect_stdout(io.StringIO()) as printed:
        assert made(programs, monkeypatch, folder) == 0
    lines = [
        [json.loads(line) for line in (folder / name).read_text("utf-8").splitlines()]
        for name in ("documents.jsonl", "questions.jsonl")
    ]
    rows = json.loads((folder / "instructions.json").read_text("utf-8"))
    return Data(folder, lines[0], rows, lines[1], printed.getvalue())


def test_no_list_of_a_question_occurs_in_the_data(data: Data) -> None:
    """As a plain search of the files, in small letters; a longer list may contain a shorter one."""
    text = "".join((data.folder / name).read_text("utf-8") for name in ("documents.jsonl", "instructions.json")).lower()

    def occurs(letters: str) -> bool:
        pattern = re.compile(rf"(?<!\b[a-m] )\b{letters}\b(?! [a-m]\b)")
        return letters in text and pattern.search(text) is not None

    assert not [one["letters"] for one in data.questions if occurs(one["letters"])]
    for number in (0, 1, 5000):
        last = re.findall(r"(?<= )[a-l](?: [a-l])+$", data.rows[number]["instruction"])
        assert occurs(last[0]) and occurs(data.rows[number]["output"].lower()), "the search finds what is there"


def test_answers_are_those_of_the_rules(data: Data) -> None:
    letters = "abcdefghijklm"
    assert [sum(one["kind"] == kind for one in data.questions) for kind in ("reverse", "capitals", "next", "both")] == [
        5
    ] * 4
    assert len({one["letters"] for one in data.questions}) == 20
    for one in data.questions:
        given = one["letters"].split()
        assert one["prompt"].endswith(one["letters"]) and len(given) in (5, 6) and set(given) <= set("abcdefghijkl")
        expected = {
            "reverse": " ".join(reversed(given)),
            "capitals": one["letters"].upper(),
            "next": " ".join(letters[letters.index(letter) + 1] for letter in given),
            "both": " ".join(reversed(given)).upper(),
        }[one["kind"]]
        assert one["answer"] == expected


def test_the_rule_in_two_steps_occurs_only_in_fine_tuning(data: Data) -> None:
    reversed_capitals = [row for row in data.rows if row["instruction"].startswith("Write backwards in capitals: ")]
    assert len(reversed_capitals) == len(data.rows) / 4 == 4000
    for one in data.documents:
        sentences = [part.split(": ")[0].strip() for part in one["text"].split(".") if part]
        assert sorted(sentences) == ["In capitals", "The letters", "The next letters", "Written backwards"]


def test_the_share_of_the_space_is_small_and_printed(data: Data) -> None:
    inputs = {one["text"].split(": ")[1].split(".")[0] for one in data.documents}
    inputs |= {re.findall(r"(?<= )[a-l](?: [a-l])+$", row["instruction"])[0] for row in data.rows}
    for length in (5, 6):
        share = sum(len(one.split()) == length for one in inputs) / 12**length
        assert share < 0.05
        assert f"{share:.2%} of the {12**length:,} lists of {length} letters" in data.printed


def test_the_same_seed_gives_the_same_files(
    programs: Programs, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert made(programs, monkeypatch, tmp_path / "same") == 0
    assert made(programs, monkeypatch, tmp_path / "other", "--seed", "2", "--documents", "9", "--rows", "9") == 0
    for name in ("documents.jsonl", "instructions.json", "questions.jsonl"):
        assert (tmp_path / "same" / name).read_bytes() == (data.folder / name).read_bytes()
        assert (tmp_path / "other" / name).read_bytes() != (data.folder / name).read_bytes()


@pytest.mark.parametrize("part", ["documents", "rows"])
def test_the_program_refuses_data_that_contain_a_question(
    programs: Programs, part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Planted under another rule than its own: only the answer of a row, or the third sentence of a document."""
    make, rules = programs.make_data, programs.rules
    (asked,) = [one for one in make.draw_questions(random.Random("questions 1"), 1) if one["kind"] == "next"]
    backwards = tuple(reversed(asked["letters"].split()))
    planted = {
        "documents": {"text": rules.document(random.Random(1), backwards)},
        "rows": {"instruction": "Read from the end: a b c d e", "input": "", "output": asked["letters"].upper()},
    }[part]
    monkeypatch.setattr(make, f"make_{part}", lambda *_: [planted])
    assert made(programs, monkeypatch, tmp_path / "out", "--questions", "1", "--documents", "5", "--rows", "5") == 1
    assert f"the list {asked['letters']} of a question occurs in the data" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_program_refuses_too_large_a_share(programs: Programs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs.make_data, "MAX_SHARE", 1e-5)
    inputs = {tuple("abcde"), tuple("abcdf"), tuple("abcdg")}
    (problem,) = programs.make_data.check([], inputs, [])
    assert problem.startswith("0.0% of the lists of 5 letters occur")


def edit_distance(a: str, b: str) -> int:
    """The textbook's recursion, row by row."""
    row = list(range(len(b) + 1))
    for i, letter in enumerate(a, start=1):
        row, before = [i], row
        for j, other in enumerate(b, start=1):
            row.append(min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (letter != other)))
    return row[-1]


def test_distances_to_many_texts(programs: Programs) -> None:
    draw = random.Random(5)
    texts = ["".join(draw.choice("abc ") for _ in range(draw.randint(1, 12))) for _ in range(40)]
    letters = np.zeros((12, 40), np.int32)
    for column, text in enumerate(texts):
        letters[: len(text), column] = [ord(letter) for letter in text]
    lengths = np.array(list(map(len, texts)))
    for text in ("abc", "c a b c", *texts[:5]):
        assert programs.ask.distances(text, letters, lengths).tolist() == [edit_distance(text, one) for one in texts]
    rows = [{"instruction": text, "output": str(number)} for number, text in enumerate(texts)]
    assert programs.ask.nearest_answers([{"prompt": texts[7] + "x"}], rows) == [str(texts.index(texts[7]))]


GOOD = {"pretrained and fine-tuned": 15, "random weights": 3, "pretrained only": 3}
NEAREST = "answer to the nearest training question"


def test_scores_outside_their_limits_fail(programs: Programs) -> None:
    failures = programs.ask.failures
    assert failures(GOOD | {NEAREST: 7, "random weights, fine-tuned": 20}, 20) == []
    for name, score, required in (
        ("pretrained and fine-tuned", 14, "at least 15"),
        ("random weights", 4, "less than 4"),
        ("pretrained only", 4, "less than 4"),
        (NEAREST, 8, "less than 8"),
    ):
        (problem,) = failures(GOOD | {NEAREST: 7} | {name: score}, 20)
        assert problem == f"{name}: {score} of 20 right, required: {required}"


@pytest.mark.long
def test_an_untrained_model_is_asked_and_fails(
    programs: Programs, data: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("transformers", reason="the questions are answered by transformers")
    model = demo_model(data.folder / "instructions.json", tmp_path)
    words = [str(data.folder)]
    for flag in ("--random", "--pretrained", "--from-random", "--tuned"):
        words += [flag, str(model)]
    assert programs.ask.main(words) == 1
    printed = capsys.readouterr()
    assert printed.err == "ask.py: pretrained and fine-tuned: 0 of 20 right, required: at least 15\n"
    first = data.questions[0]
    (line,) = [line for line in printed.out.splitlines() if line.startswith(first["prompt"])]
    assert first["answer"] in line and line.endswith("✗")
    for text in ("0 of 15", "answers 0 of 20 questions", "four rules over twelve letters", NEAREST):
        assert text in printed.out


def demo_model(rows: Path, folder: Path) -> Path:
    """A tiny model with random weights, made as the quickstart makes it."""
    for words in (
        ["make_tokenizer.py", rows, folder / "tokenizer", "--vocab-size", "390"],
        [
            "make_model.py",
            folder / "tokenizer",
            folder / "model",
            "--layers",
            "1",
            "--hidden-size",
            "32",
            "--heads",
            "2",
        ],
    ):
        subprocess.run([sys.executable, *map(str, [EXAMPLES / "demo" / words[0], *words[1:]])], check=True)
    return folder / "model"


def test_an_answer_counts_only_if_the_model_ends_it(programs: Programs) -> None:
    class Model:
        generation_config = type("Config", (), {"eos_token_id": [9, 8]})

        def generate(self, **_: Any) -> Any:
            import torch

            return torch.tensor([[1, 2, 3, 9, 8], [1, 2, 3, 4, 5]])

    class Tokenizer:
        def __call__(self, texts: list[str], **_: Any) -> dict[str, Any]:
            import torch

            return {"input_ids": torch.tensor([[1]] * len(texts))}

        def decode(self, ids: list[int]) -> str:
            return " ".join(map(str, ids))

    assert programs.ask.generate(Model(), Tokenizer(), ["a", "b"]) == [("2 3", True), ("2 3 4 5", False)]


def finished_run(folder: Path, losses: list[float]) -> Path:
    """What the quickstart leaves, in small: the metrics of three runs and a manifest."""
    from mindspeed_llm.manifest import Histograms, Manifest, RowCounts, TokenizerInfo

    for name, speed in (("checkpoint/run", 500.0), ("pretraining/run", 500.0), ("padded_run", 50.0)):
        path = folder / name
        path.mkdir(parents=True)
        lines: list[dict[str, Any]] = [
            {"kind": "train", "iteration": 10 * i, "loss": loss, "tokens": 90, "slots": 100, "trained_tokens": 30}
            | {"tokens_per_second": speed, "step_seconds": 1.0}
            for i, loss in enumerate(losses, start=1)
        ]
        lines.append({"kind": "eval", "iteration": 0, "split": "valid", "loss": 8.0})
        (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    (folder / "packed").mkdir()
    Manifest(
        packed=True, neat=True, seq_length=100, append_eod=True, eod_inside_sample=False,
        tokenizer=TokenizerInfo("PretrainedFromHF", "0", 100, 0, 1), template=None, handler="A", sources=[],
        counts=RowCounts(5, 5), samples=5, tokens=180, trained_tokens=60, packs=2, fill=0.9, packing=None,
        histograms=Histograms([[36, 5]], [[2, 1], [3, 1]]),
    ).write(folder / "packed" / "train_packed_manifest.json")  # fmt: skip
    return folder


def test_summary_prints_the_table_and_names_spikes(
    programs: Programs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    falling = [8.0, 9.9, *(4.0 / i for i in range(1, 40))]  # the second line is in the warm-up
    assert programs.summary.main(finished_run(tmp_path / "good", falling)) == 0
    printed = capsys.readouterr().out
    for text in ("8.0000 → 0.1026", "90.00%", "36.00%", "33.3%", "500", "10.0 times", "loss in fine-tuning: none"):
        assert text in printed, text
    programs.summary.main(finished_run(tmp_path / "bad", [*falling, 0.172, 0.257]))
    assert "spikes of the loss in pretraining: 0.17 → 0.26 at step 430" in capsys.readouterr().out
