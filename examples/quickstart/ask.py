"""Ask the models of the quickstart the same questions and count the right answers.

    python examples/quickstart/ask.py DATA_DIR --random DIR --pretrained DIR --from-random DIR --tuned DIR [--quiet]

Each model answers the questions of DATA_DIR/questions.jsonl greedily with transformers, from its Hugging Face folder
alone. An answer is right if it is the expected text and the model ended it. Beside the models: the answer of the
training row whose question is nearest by edit distance, and the pretrained model, which never saw a question, in the
words of its text. The exit status is 1 if the fine-tuned model has less than 75 % right, or a baseline so many that
the questions prove nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rules import KINDS, text_prompt

from mindspeed_llm.console.text_tables import align_columns

MIN_TUNED, MAX_UNTUNED, MAX_NEAREST = 0.75, 0.2, 0.4  # shares of the questions
MAX_NEW_TOKENS = 16  # an answer has seven
BATCH = 100
SHOWN = 22  # characters of an answer in the table
RANDOM, PRETRAINED, FROM_RANDOM, TUNED, NEAREST = (
    "random weights",
    "pretrained only",
    "random weights, fine-tuned",
    "pretrained and fine-tuned",
    "answer to the nearest training question",
)
WHAT_IT_IS = "a model that learns four rules over twelve letters, no more."
Question = dict[str, str]


def load(folder: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, padding_side="left")
    return AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).eval(), tokenizer


def generate(model: Any, tokenizer: Any, texts: Sequence[str]) -> list[tuple[str, bool]]:
    """Continue texts greedily; return each answer, and whether the model ended it."""
    import torch

    ends = model.generation_config.eos_token_id
    ends = [ends] if isinstance(ends, int) else ends
    answers = []
    for start in range(0, len(texts), BATCH):
        inputs = tokenizer(list(texts[start : start + BATCH]), return_tensors="pt", padding=True)
        inputs.pop("token_type_ids", None)
        with torch.inference_mode():
            output = model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        for row in output[:, inputs["input_ids"].shape[1] :].tolist():
            end = next((place for place, token in enumerate(row) if token in ends), None)
            answers.append((tokenizer.decode(row[:end]), end is not None))
    return answers


def chat_answers(folder: Path, questions: list[Question]) -> list[tuple[str, bool]]:
    """Return the answers of a model to the questions, written with its chat template."""
    model, tokenizer = load(folder)
    texts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": one["prompt"]}], add_generation_prompt=True, tokenize=False
        )
        for one in questions
    ]
    return generate(model, tokenizer, texts)


def text_score(folder: Path, questions: list[Question]) -> tuple[int, int]:
    """Count the lists that a model continues rightly in the words of the text for pretraining.

    Returns:
        Number of right continuations, and of questions whose rule occurs in the text.
    """
    asked = [one for one in questions if KINDS[one["kind"]].sentence]
    texts = [text_prompt(one["kind"], tuple(one["letters"].split())) for one in asked]
    answers = generate(*load(folder), texts)
    # The next sentence may follow, so the answer ends with the full stop.
    right = [text.strip().startswith(f"{one['answer']}.") for (text, _), one in zip(answers, asked, strict=True)]
    return sum(right), len(asked)


def nearest_answers(questions: list[Question], rows: list[dict[str, str]]) -> list[str]:
    """Return the answer of the training row whose question has the smallest edit distance to each question."""
    prompts = [row["instruction"] for row in rows]
    lengths = np.array([len(prompt) for prompt in prompts])
    letters = np.zeros((lengths.max(), len(prompts)), np.int32)
    for column, prompt in enumerate(prompts):
        letters[: len(prompt), column] = [ord(letter) for letter in prompt]
    return [rows[int(distances(one["prompt"], letters, lengths).argmin())]["output"] for one in questions]


def distances(text: str, letters: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return the edit distance between a text and each of many others [others].

    Args:
        text: the text.
        letters: code points of the others, int [longest, others], 0 after their end.
        lengths: lengths of the others [others].
    """
    others = letters.shape[1]
    # row[i]: distance between the beginning of the text so far and the first i letters of each other text.
    row = np.repeat(np.arange(len(letters) + 1, dtype=np.int16)[:, None], others, axis=1)
    for number, letter in enumerate(text, start=1):
        before, row = row, np.empty_like(row)
        row[0] = number
        replaced = before[:-1] + (letters != ord(letter))
        cheapest = np.minimum(replaced, before[1:] + 1)
        for place in range(len(letters)):
            np.minimum(cheapest[place], row[place] + 1, out=row[place + 1])
    return row[lengths, np.arange(others)]


def shown(text: str) -> str:
    """Return an answer on one line, cut to the width of the table."""
    line = "".join(letter if " " <= letter <= "~" else "�" for letter in " ".join(text.split()))
    return (line if len(line) <= SHOWN else line[: SHOWN - 1] + "…") or "(nothing)"


def left_aligned(rows: list[list[str]]) -> str:
    """Format a table whose first row is the header."""
    lines = align_columns(rows, left=len(rows[0]))
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def read_lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def by_kind(questions: list[Question], right: Sequence[bool]) -> dict[str, str]:
    """Return for each kind 'right of asked'."""
    found: dict[str, str] = {}
    for kind in KINDS:
        of_kind = [is_right for one, is_right in zip(questions, right, strict=True) if one["kind"] == kind]
        found[kind] = f"{sum(of_kind)} of {len(of_kind)}"
    return found


def answers_table(questions: list[Question], answers: dict[str, list[tuple[str, bool]]], right: Sequence[bool]) -> str:
    """Return the answers of some models side by side; those of the last, the fine-tuned one, are marked."""
    rows = [["question", "expected", *answers]]
    for number, one in enumerate(questions):
        *texts, tuned = (shown(given[number][0]) for given in answers.values())
        rows.append([one["prompt"], one["answer"], *texts, f"{tuned} {'✓' if right[number] else '✗'}"])
    return left_aligned(rows)


def scores_table(questions: list[Question], scores: dict[str, list[bool]], own_words: tuple[int, int]) -> str:
    """Return the number of right answers of models and baselines, with those of each kind."""
    rows = [["", "right", *KINDS]]
    for name, right in scores.items():
        rows.append([name, f"{sum(right)} of {len(questions)}", *by_kind(questions, right).values()])
    rows.append(
        ["pretrained only, in the words of its text", f"{own_words[0]} of {own_words[1]}", *["" for _ in KINDS]]
    )
    return left_aligned(rows)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument("data", type=Path, metavar="DATA_DIR", help="the directory written by make_data.py")
    parser.add_argument("--random", type=Path, required=True, help="Hugging Face folder of the random weights")
    parser.add_argument("--pretrained", type=Path, required=True, help="folder of the pretrained model")
    parser.add_argument("--from-random", type=Path, required=True, help="folder of random weights, fine-tuned")
    parser.add_argument("--tuned", type=Path, required=True, help="folder of the pretrained model, fine-tuned")
    parser.add_argument("--quiet", action="store_true", help="print scores only, not every answer")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    questions: list[Question] = read_lines(arguments.data / "questions.jsonl")
    expected = [one["answer"] for one in questions]
    models = {
        RANDOM: arguments.random,
        PRETRAINED: arguments.pretrained,
        FROM_RANDOM: arguments.from_random,
        TUNED: arguments.tuned,
    }
    answers = {name: chat_answers(folder, questions) for name, folder in models.items()}
    scores = {
        name: [ended and text == true for (text, ended), true in zip(given, expected, strict=True)]
        for name, given in answers.items()
    }
    rows = json.loads((arguments.data / "instructions.json").read_text("utf-8"))
    scores[NEAREST] = [own == true for own, true in zip(nearest_answers(questions, rows), expected, strict=True)]
    if not arguments.quiet:
        side_by_side = {name: answers[name] for name in (RANDOM, PRETRAINED, TUNED)}
        print(answers_table(questions, side_by_side, scores[TUNED]), end="\n\n")
    print(scores_table(questions, scores, text_score(arguments.pretrained, questions)))
    totals = {name: sum(right) for name, right in scores.items()}
    print(f"\nThe fine-tuned model answers {totals[TUNED]} of {len(questions)} questions: {WHAT_IT_IS}")
    problems = failures(totals, len(questions))
    for problem in problems:
        print(f"ask.py: {problem}", file=sys.stderr)
    return 1 if problems else 0


def failures(scores: dict[str, int], count: int) -> list[str]:
    """Return a message for each score outside its limit."""
    limits: dict[str, tuple[Callable[[int], bool], str]] = {
        TUNED: (lambda n: n >= MIN_TUNED * count, f"at least {MIN_TUNED * count:g}"),
        RANDOM: (lambda n: n < MAX_UNTUNED * count, f"less than {MAX_UNTUNED * count:g}"),
        PRETRAINED: (lambda n: n < MAX_UNTUNED * count, f"less than {MAX_UNTUNED * count:g}"),
        NEAREST: (lambda n: n < MAX_NEAREST * count, f"less than {MAX_NEAREST * count:g}"),
    }
    return [
        f"{name}: {scores[name]} of {count} right, required: {required}"
        for name, (is_good, required) in limits.items()
        if not is_good(scores[name])
    ]


if __name__ == "__main__":
    sys.exit(main())
