"""Send prompts to one or more Hugging Face models and print their answers.

    python examples/chat.py HF_DIR [HF_DIR ...] [--prompt TEXT | --ask]

The models are loaded with transformers from the folders alone, as vLLM or any other program would load the output of
`--save-hf` or convert_ckpt.py. Answers are generated greedily. If several folders are given, each model answers every
prompt, for example a model before and after fine-tuning. Without --prompt, a few questions of the demo data are used;
--ask reads questions from the terminal. Requires transformers (pip install '.[chat]').
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

MAX_SHOWN = 400  # characters of an answer or error message; longer text is cut
# Files that a folder must contain: (glob patterns, at least one of which must match; name for messages; how to fix it).
REQUIRED_FILES = (
    (("config.json",), "config.json", "give the folder of a Hugging Face model"),
    (
        ("*.safetensors", "pytorch_model*.bin"),
        "weights (model.safetensors)",
        "give the folder that --save-hf or convert_ckpt.py has written",
    ),
    (
        ("tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json"),
        "tokenizer (tokenizer.json or tokenizer.model)",
        "copy the files of the base model's tokenizer there, or train with --tokenizer-name-or-path",
    ),
)
NO_TEMPLATE = (
    "no chat template (chat_template.jinja, or chat_template in tokenizer_config.json), so prompts cannot be rendered. "
    "--save-hf writes the template of --prompt-type; a base model has none"
)


class UnusableModelError(Exception):
    """A model in a folder that cannot be loaded or prompted. The message gives the reason."""


def demo_questions(count: int) -> list[tuple[str, str]]:
    """Generate (question, expected answer) pairs of the demo's tasks, with a different seed than the training data."""
    sys.path.insert(0, str(Path(__file__).parent / "demo"))
    from make_data import make_rows

    rows = sorted(make_rows(60, seed=4321), key=lambda row: len(row.instruction + row.input))
    # Rows are sorted by length, so this keeps the shortest question for each first word.
    chosen: dict[str, tuple[str, str]] = {}
    for row in rows:
        question = row.instruction + (f"\n{row.input}" if row.input else "")
        chosen.setdefault(question.split()[0], (question, row.output))
    return list(chosen.values())[:count]


def answer(folder: Path, model: Any, tokenizer: Any, question: str, max_new_tokens: int) -> str:
    """Generate the model's answer to one question.

    Raises:
        UnusableModelError: If the chat template fails, or the tokenizer's ids exceed the model's vocabulary.
    """
    messages = [{"role": "user", "content": question}]
    options = {"add_generation_prompt": True, "return_tensors": "pt", "return_dict": True}
    try:
        inputs = tokenizer.apply_chat_template(messages, **options)
    except Exception as error:  # a chat template is a program and can raise anything
        raise UnusableModelError(f"{folder}: its chat template cannot be used ({one_line(error)})") from error
    if int(inputs["input_ids"].max()) >= model.config.vocab_size:
        # Without this check the embedding lookup would fail with an index error that names neither file.
        raise UnusableModelError(
            f"{folder}: its tokenizer gives ids beyond vocab_size {model.config.vocab_size} of config.json"
        )
    output = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    return str(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)).strip()


def load(folder: Path) -> tuple[Any, Any]:
    """Load the model and the tokenizer of a folder, without network access and without running code of the folder.

    Raises:
        UnusableModelError: If the model, the tokenizer or the chat template is missing or damaged.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loaded = []
    # The tokenizer is loaded first: it is small, so a missing chat template is reported before the weights are read.
    for part, loader in (("tokenizer", AutoTokenizer), ("model", AutoModelForCausalLM)):
        try:
            loaded.append(loader.from_pretrained(folder, local_files_only=True, trust_remote_code=False))
        except Exception as error:  # transformers passes on the exceptions of its many dependencies
            raise UnusableModelError(f"{folder}: its {part} cannot be loaded ({one_line(error)})") from error
        if part == "tokenizer" and loaded[0].chat_template is None:
            raise UnusableModelError(f"{folder}: holds {NO_TEMPLATE}")
    tokenizer, model = loaded
    if model.generation_config.eos_token_id is None:
        print(
            f"{folder}: generation_config.json has no eos_token_id; every answer continues to --max-new-tokens",
            file=sys.stderr,
        )
    return model.eval(), tokenizer


def missing_files(folder: Path) -> list[str]:
    """Return an error message for each required file that a folder does not contain."""
    return [
        f"{folder}: holds no {name}; {advice}"
        for patterns, name, advice in REQUIRED_FILES
        if not any(path.is_file() for pattern in patterns for path in folder.glob(pattern))
    ]


def one_line(error: Exception) -> str:
    """Format an exception as one line of at most MAX_SHOWN characters."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + " …"


def show(label: str, text: str, width: int) -> None:
    """Print a label and its text, with further lines of the text aligned below the first."""
    text = text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + " …"
    print(f"{label:{width}}{text}".replace("\n", "\n" + " " * width))


def read_question() -> list[tuple[str, str]]:
    """Read one question from the terminal; the list is empty at the end of the input."""
    try:
        return [(input("> "), "")]
    except EOFError:
        return []


def ask(models: list[tuple[Path, Any, Any]], questions: list[tuple[str, str]], max_new_tokens: int) -> None:
    """Print the answers of all models to each question.

    Args:
        models: (folder, model, tokenizer) of each model.
        questions: (question, expected answer or "") pairs. If empty, questions are read from the terminal.
        max_new_tokens: maximum length of an answer in tokens.
    """
    interactive = not questions
    width = max(len(name) for name in ("question", "expected", *(folder.name for folder, _, _ in models))) + 2
    while questions or (interactive and (questions := read_question())):
        question, expected = questions.pop(0)
        if not interactive:
            print()
            show("question", question, width)
        if expected:
            show("expected", expected, width)
        for folder, model, tokenizer in models:
            show(folder.name, answer(folder, model, tokenizer, question, max_new_tokens), width)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument("folders", type=Path, nargs="+", metavar="HF_DIR", help="folders of Hugging Face models")
    parser.add_argument("--prompt", action="append", help="a question; may be repeated")
    parser.add_argument("--ask", action="store_true", help="read questions from the terminal until end of file")
    parser.add_argument("--count", type=int, default=3, help="number of demo questions (default 3)")
    parser.add_argument("--max-new-tokens", type=int, default=96, help="maximum tokens of an answer (default 96)")
    arguments = parser.parse_args()
    if arguments.max_new_tokens < 1:
        parser.error(f"--max-new-tokens {arguments.max_new_tokens}: must be at least 1")
    if problems := [line for folder in arguments.folders for line in missing_files(folder)]:
        parser.error("\n".join(problems))
    try:
        import transformers
    except ImportError:
        parser.error("transformers is not installed: pip install '.[chat]'")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    questions = [(text, "") for text in arguments.prompt or ()]
    if not questions and not arguments.ask:
        questions = demo_questions(arguments.count)
    try:
        ask([(folder, *load(folder)) for folder in arguments.folders], questions, arguments.max_new_tokens)
    except UnusableModelError as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
