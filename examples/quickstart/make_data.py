"""Generate the data of the quickstart: text for pretraining, instructions for fine-tuning, and questions.

    python examples/quickstart/make_data.py OUT_DIR [--seed 1] [--documents 12000] [--rows 16000] [--questions 5]

documents.jsonl     {"text"}: a list of letters and what three rules make of it
instructions.json   Alpaca rows: one question about a list; four rules
questions.jsonl     {"prompt", "answer", "kind", "letters"}: questions of each kind

No list of a question occurs in the data, as input or as answer of any rule. The program searches the finished files for
the lists, and prints the share of all lists that occur in the data. The same seed gives the same files.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from rules import KINDS, LENGTHS, LETTERS, List, answer, document, draw_list, question, show, space, traces

MAX_SHARE = 0.05  # of the lists of a length that occur as input in the data


def draw_questions(rng: random.Random, per_kind: int) -> list[dict[str, str]]:
    """Draw questions about different lists, `per_kind` of each kind."""
    chosen: set[List] = set()
    questions = []
    for kind in KINDS:
        for _ in range(per_kind):
            while (letters := draw_list(rng)) in chosen:
                pass
            chosen.add(letters)
            questions.append(
                {
                    "prompt": question(rng, kind, letters),
                    "answer": answer(kind, letters),
                    "kind": kind,
                    "letters": show(letters),
                }
            )
    return questions


def draw_other_list(rng: random.Random, reserved: set[List]) -> List:
    """Draw a list of which neither itself nor an answer is a reserved list."""
    while not traces(letters := draw_list(rng)).isdisjoint(reserved):
        pass
    return letters


def make_documents(rng: random.Random, count: int, reserved: set[List]) -> list[dict[str, str]]:
    return [{"text": document(rng, draw_other_list(rng, reserved))} for _ in range(count)]


def make_rows(rng: random.Random, count: int, reserved: set[List]) -> list[dict[str, str]]:
    """Make rows in Alpaca format; the kinds take turns, in shuffled order."""
    rows = []
    for turn in range(count):
        kind, letters = list(KINDS)[turn % len(KINDS)], draw_other_list(rng, reserved)
        rows.append({"instruction": question(rng, kind, letters), "input": "", "output": answer(kind, letters)})
    rng.shuffle(rows)
    return rows


def lists_in(texts: Iterable[str]) -> Counter[List]:
    """Find every list of letters in texts, in small letters, and count it."""
    pattern = re.compile(rf"(?<!\w)[{LETTERS}m](?: [{LETTERS}m])+(?!\w)", re.IGNORECASE)
    return Counter(tuple(found.lower().split()) for text in texts for found in pattern.findall(text))


def check(texts: list[str], inputs: set[List], questions: list[dict[str, str]]) -> list[str]:
    """Return what is wrong: lists of questions in the data, or too large a share of a length."""
    found = lists_in(texts)
    asked = {tuple(one["letters"].split()) for one in questions}
    problems = [f"the list {show(one)} of a question occurs in the data" for one in sorted(asked & found.keys())]
    for length in LENGTHS:
        share = sum(len(one) == length for one in inputs) / space()[length]
        if share >= MAX_SHARE:
            problems.append(f"{share:.1%} of the lists of {length} letters occur in the data, at most {MAX_SHARE:.0%}")
    return problems


def write(path: Path, content: str) -> None:
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(content, "utf-8")
    temporary.replace(path)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument("out", type=Path, help="the directory to write to")
    parser.add_argument("--seed", type=int, default=1, help="the same seed gives the same files (default 1)")
    parser.add_argument("--documents", type=int, default=12000, help="texts for pretraining (default 12000)")
    parser.add_argument("--rows", type=int, default=16000, help="rows for fine-tuning (default 16000)")
    parser.add_argument("--questions", type=int, default=5, help="questions of each kind (default 5)")
    arguments = parser.parse_args()
    if min(arguments.documents, arguments.rows, arguments.questions) < 1:
        parser.error("--documents, --rows and --questions must be 1 or more")
    questions = draw_questions(random.Random(f"questions {arguments.seed}"), arguments.questions)
    reserved = {tuple(one["letters"].split()) for one in questions}
    documents = make_documents(random.Random(f"documents {arguments.seed}"), arguments.documents, reserved)
    rows = make_rows(random.Random(f"rows {arguments.seed}"), arguments.rows, reserved)

    asked = [row["instruction"] for row in rows]
    texts = [*(one["text"] for one in documents), *asked, *(row["output"] for row in rows)]
    # The first list of a document, and the only one of an instruction, is an input.
    inputs = {next(iter(lists_in([text]))) for text in (*(one["text"] for one in documents), *asked)}
    if problems := check(texts, inputs, questions):
        print("\n".join(f"make_data.py: {problem}" for problem in problems[:10]), file=sys.stderr)
        return 1
    out = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    write(out / "documents.jsonl", "".join(json.dumps(one) + "\n" for one in documents))
    write(out / "instructions.json", json.dumps(rows, indent=0) + "\n")
    write(out / "questions.jsonl", "".join(json.dumps(one) + "\n" for one in questions))
    trained = Counter(len(one) for one in inputs)
    shares = ", ".join(
        f"{trained[n] / count:.2%} of the {count:,} lists of {n} letters" for n, count in space().items()
    )
    print(f"{out}: {len(documents):,} documents, {len(rows):,} rows, {len(questions)} questions")
    print(
        f"as input in the data: {shares}; of the {len(questions)} lists of the questions: none, not even as an answer"
    )
    for row in (documents[0]["text"], f"{rows[0]['instruction']} → {rows[0]['output']}"):
        print(f"for example: {row}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
