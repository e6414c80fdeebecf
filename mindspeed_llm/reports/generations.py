"""Read the answers of a run, generations.jsonl, by prompt and evaluation.

Training appends one line per answer (--generate-prompts):

    {"iteration": 140, "line": 3, "prompt": "Reverse: a b", "answer": "b a", "output": "b b", "tokens": 3,
     "stopped": true, "exact": false}
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

GENERATIONS_NAME = "generations.jsonl"


@dataclass(frozen=True)
class Answer:
    """What the model has answered at one evaluation.

    Attributes:
        output: the text.
        stopped: whether the model ended the answer; otherwise it has the maximum length.
        exact: whether it is the expected answer; None if none is expected.
    """

    output: str
    stopped: bool
    exact: bool | None


@dataclass
class AskedPrompt:
    """One prompt and the answers to it.

    Attributes:
        prompt: its text: the prompt, or the messages of a conversation with their roles.
        expected: the expected answer; None if there is none.
        answers: answer by iteration.
    """

    prompt: str
    expected: str | None
    answers: dict[int, Answer] = field(default_factory=dict)


@dataclass(frozen=True)
class Generations:
    """The answers of a run.

    Attributes:
        prompts: the prompts in the order of their file.
        iterations: iterations of the evaluations, ascending.
    """

    prompts: list[AskedPrompt]
    iterations: list[int]

    def score(self, iteration: int) -> tuple[int, int]:
        """Return the number of exact answers at an evaluation, and of answers that are expected."""
        given = [prompt.answers[iteration] for prompt in self.prompts if iteration in prompt.answers]
        scored = [answer.exact for answer in given if answer.exact is not None]
        return sum(scored), len(scored)


def read_generations(run_dir: str | Path) -> Generations:
    """Read the answers in a run directory; there are none if the file is missing or cannot be read.

    A resumed run repeats the evaluations after its last checkpoint: the last answer of an iteration is used. Damaged
    lines, for example after a kill, are skipped.

    Args:
        run_dir: the run directory.
    """
    try:
        content = (Path(run_dir) / GENERATIONS_NAME).read_bytes().decode("utf-8", errors="replace")
    except OSError:
        content = ""
    # A prompt is known by its text as well: a resumed run may have other prompts.
    found: dict[tuple[int, str], AskedPrompt] = {}
    for text in content.split("\n"):
        record = _record(text)
        if record is None:
            continue
        expected = record.get("answer")
        prompt = _prompt_text(record)
        asked = found.setdefault(
            (record["line"], prompt), AskedPrompt(prompt, expected if isinstance(expected, str) else None)
        )
        exact = record.get("exact")
        asked.answers[record["iteration"]] = Answer(
            record["output"], record.get("stopped") is True, exact if isinstance(exact, bool) else None
        )
    prompts = [found[key] for key in sorted(found)]
    return Generations(prompts, sorted({iteration for prompt in prompts for iteration in prompt.answers}))


def _record(text: str) -> dict[str, Any] | None:
    """Return the object of a line, or None if it is damaged."""
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        return None
    kinds = {"iteration": int, "line": int, "output": str}
    is_valid = isinstance(record, dict) and all(isinstance(record.get(key), kind) for key, kind in kinds.items())
    return record if is_valid else None


def _prompt_text(record: dict[str, Any]) -> str:
    """Return the prompt of a line as one text."""
    messages = record.get("messages")
    if not isinstance(messages, list):
        return str(record.get("prompt", ""))
    if len(messages) == 1 and isinstance(messages[0], dict):
        return str(messages[0].get("content", ""))
    return "\n".join(f"{one.get('role')}: {one.get('content')}" for one in messages if isinstance(one, dict))
