"""Compare the answers of a base model with those of tuned ones, and score them by exact match.

    python examples/real_model/evaluate.py DATA_DIR BASE_DIR [--adapter DIR] [--merged DIR] [--shuffled DIR]
        [--untuned] [--split test] [--show 3] [--results FILE.json] [--required 85]

Every model answers the prompts of DATA_DIR/test.json (or dev.json) greedily. The adapters are applied to the base model
as examples/chat.py does it (by peft, if peft has the method), other folders are loaded by transformers alone. "exact"
counts answers equal to the expected text; "values" also accepts other spacing and text around the JSON object.
`--untuned` adds the base model with the training prompt, with an instruction that describes the answer completely, and
with this instruction and three examples. `--required` exits with status 1 if a tuned model has fewer exact answers than
so many percent, or if an untuned model without examples or the model tuned on shuffled labels has 20 % or more, counted
by values.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import chat
from write_rows import INSTRUCTION, Row, make_rows

MAX_UNTUNED = 0.2
EXAMPLES = 3
MAX_NEW_TOKENS = 64  # the longest expected answer has about 50
BATCH = 50
ROLES = ("tuned", "untuned", "examples")
Messages = list[dict[str, str]]


@dataclass
class Score:
    """Answers of one model with one prompt, and how many of them are right.

    Attributes:
        label: the model and its prompt, for the table.
        role: "tuned", "untuned" (tuned models must be good, untuned ones bad) or "examples" (shown only).
        exact: answers equal to the expected text.
        values: answers with a JSON object that equals the expected one.
        seconds: duration of the generation.
    """

    label: str
    role: str
    answers: list[str]
    exact: int
    values: int
    seconds: float


def messages_of(row: Row, system: str, examples: list[Row]) -> Messages:
    """Return the chat messages of a prompt; the examples come first, as earlier turns."""
    messages = [{"role": "system", "content": system}]
    for example in examples:
        messages.append({"role": "user", "content": example["instruction"]})
        messages.append({"role": "assistant", "content": example["output"]})
    return [*messages, {"role": "user", "content": row["instruction"]}]


def generate(model: Any, tokenizer: Any, prompts: list[Messages]) -> Iterator[str]:
    """Generate the answers to chat prompts greedily, in batches padded on the left."""
    import torch

    for start in range(0, len(prompts), BATCH):
        inputs = tokenizer.apply_chat_template(
            prompts[start : start + BATCH],
            add_generation_prompt=True,
            padding=True,
            return_dict=True,
            return_tensors="pt",
        )
        with torch.inference_mode():
            output = model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        answers = output[:, inputs["input_ids"].shape[1] :]
        yield from (text.strip() for text in tokenizer.batch_decode(answers, skip_special_tokens=True))


def first_object(text: str) -> Any:
    """Return the first JSON object in a text, or None."""
    start = text.find("{")
    try:
        return json.JSONDecoder().raw_decode(text, start)[0] if start >= 0 else None
    except json.JSONDecodeError:
        return None


def score(
    label: str,
    role: str,
    model: Any,
    tokenizer: Any,
    rows: list[Row],
    *,
    system: str | None = None,
    examples: list[Row] | None = None,
) -> Score:
    """Let a model answer all rows and count the right answers.

    Args:
        label: name for the table.
        role: see Score.
        model: a transformers or peft model.
        tokenizer: its tokenizer, with padding on the left.
        rows: the prompts and expected answers.
        system: the system message; default: the one of the training data.
        examples: rows that are shown in the prompt with their answers.
    """
    start = time.monotonic()
    prompts = [messages_of(row, system or row["system"], examples or []) for row in rows]
    answers = list(generate(model, tokenizer, prompts))
    expected = [row["output"] for row in rows]
    exact = sum(answer == right for answer, right in zip(answers, expected, strict=True))
    values = sum(first_object(a) == json.loads(right) for a, right in zip(answers, expected, strict=True))
    result = Score(label, role, answers, exact, values, time.monotonic() - start)
    print(f"{label}: {result.exact} of {len(rows)} exact, {result.seconds:.0f} s", flush=True)
    return result


def load_model(folder: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()


def load_folder(base: Path, folder: Path) -> Any:
    """Load the model in a folder, or the adapter in it with its base model."""
    if not (folder / chat.ADAPTER_CONFIG).is_file():
        return load_model(folder)
    return chat.with_adapter(load_model(base), folder).eval()


def score_all(arguments: argparse.Namespace, rows: list[Row]) -> list[Score]:
    """Score the models named on the command line, one after the other."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(arguments.base, local_files_only=True, padding_side="left")
    scores = []
    if arguments.untuned:
        base = load_model(arguments.base)
        examples = make_rows("train", EXAMPLES, seed=0)
        scores.append(score("base, training prompt", "untuned", base, tokenizer, rows))
        scores.append(score("base, full instruction", "untuned", base, tokenizer, rows, system=INSTRUCTION))
        label = "base, full instruction and three examples"
        scores.append(score(label, "examples", base, tokenizer, rows, system=INSTRUCTION, examples=examples))
        del base
    if arguments.adapter:
        adapter = load_folder(arguments.base, arguments.adapter)
        scores.append(score("adapter", "tuned", adapter, tokenizer, rows))
    if arguments.merged:
        # The folder has its own tokenizer and chat template; it is used as it is.
        its_own = AutoTokenizer.from_pretrained(arguments.merged, local_files_only=True, padding_side="left")
        scores.append(score("tuned model without adapter", "tuned", load_model(arguments.merged), its_own, rows))
    if arguments.shuffled:
        shuffled = load_folder(arguments.base, arguments.shuffled)
        scores.append(score("tuned on shuffled labels", "untuned", shuffled, tokenizer, rows))
    return scores


def print_answers(rows: list[Row], scores: list[Score], count: int) -> None:
    """Print the answers of all models to the first prompts side by side."""
    width = max(len(text) for text in ("expected", *(item.label for item in scores))) + 2
    for index, row in enumerate(rows[:count]):
        print(f"\n{'prompt':{width}}{row['instruction']}\n{'expected':{width}}{row['output']}")
        for item in scores:
            print(f"{item.label:{width}}{item.answers[index] or '(nothing)'}".replace("\n", "\n" + " " * width))


def print_table(scores: list[Score], count: int) -> None:
    width = max(len(item.label) for item in scores) + 2
    print(f"\n{f'{count} prompts':{width}}   exact  values  seconds\n{'-' * width}  ------  ------  -------")
    for item in scores:
        print(f"{item.label:{width}}  {item.exact / count:6.0%}  {item.values / count:6.0%}  {item.seconds:7.0f}")


def failures(scores: list[Score], count: int, required: float) -> list[str]:
    """Return a message for each score outside the limits; `required` is the smallest share of exact answers."""
    low = [s for s in scores if s.role == "tuned" and s.exact < required * count]
    high = [s for s in scores if s.role == "untuned" and s.values >= MAX_UNTUNED * count]
    return [
        *(f"{item.label}: {item.exact / count:.0%} exact, required: at least {required:.0%}" for item in low),
        *(f"{item.label}: {item.values / count:.0%}, required: less than {MAX_UNTUNED:.0%}" for item in high),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument("data", type=Path, metavar="DATA_DIR", help="the directory written by write_rows.py")
    parser.add_argument("base", type=Path, metavar="BASE_DIR", help="Hugging Face folder of the untuned model")
    parser.add_argument("--adapter", type=Path, help="folder of the tuned adapter")
    parser.add_argument("--merged", type=Path, help="Hugging Face folder of a tuned model")
    parser.add_argument("--shuffled", type=Path, help="folder tuned on shuffled labels")
    parser.add_argument("--untuned", action="store_true", help="score the base model with all three prompts")
    parser.add_argument("--split", choices=("dev", "test"), default="test", help="the prompts (default test)")
    parser.add_argument("--show", type=int, default=3, help="number of prompts whose answers are printed (default 3)")
    parser.add_argument("--results", type=Path, help="write scores and answers to this JSON file")
    parser.add_argument("--required", type=float, metavar="PERCENT", help="exact answers below which the status is 1")
    arguments = parser.parse_args()
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    rows: list[Row] = json.loads((arguments.data / f"{arguments.split}.json").read_text("utf-8"))
    scores = score_all(arguments, rows)
    print_answers(rows, scores, arguments.show)
    print_table(scores, len(rows))
    if arguments.results:
        arguments.results.write_text(json.dumps([asdict(item) for item in scores], indent=1) + "\n", "utf-8")
    problems = failures(scores, len(rows), arguments.required / 100) if arguments.required else []
    for problem in problems:
        print(f"evaluate.py: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
