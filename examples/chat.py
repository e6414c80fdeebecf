"""Ask models something: python examples/chat.py HF_DIR [HF_DIR ...] [--prompt TEXT | --ask]

Answers with transformers' generate, greedily, from nothing but the folders: what `--save-hf` or convert_ckpt.py wrote
is what transformers and vLLM load. Several folders answer in turn: a model before and after its fine-tune. Without
--prompt they get a few of the demo's questions; --ask asks at the terminal. Needs transformers (pip install '.[chat]').
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

SHOWN = 400  # characters of one answer
# What a folder must hold: patterns, of which one is enough, what they are, and where they come from.
NEEDED = (
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
    "no chat template (chat_template.jinja, or chat_template in tokenizer_config.json), so nothing says how to ask it: "
    "--save-hf writes that of --prompt-type; a base model has none"
)


class Unusable(Exception):  # noqa: N818 - a folder, not an error of this program
    """A folder that cannot be asked; the message is the reason."""


def demo_questions(count: int) -> list[tuple[str, str]]:
    """Short tasks as the demo's generator makes them, drawn with another seed than its data set, with their answers."""
    sys.path.insert(0, str(Path(__file__).parent / "demo"))
    from make_data import make_rows

    rows = sorted(make_rows(60, seed=4321), key=lambda row: len(row.instruction + row.input))
    chosen: dict[str, tuple[str, str]] = {}
    for row in rows:
        question = row.instruction + (f"\n{row.input}" if row.input else "")
        chosen.setdefault(question.split()[0], (question, row.output))
    return list(chosen.values())[:count]


def answer(folder: Path, model: Any, tokenizer: Any, question: str, most: int) -> str:
    """The model's own continuation of a conversation with one question.

    Raises:
        Unusable: the chat template cannot be used.
    """
    messages = [{"role": "user", "content": question}]
    words = {"add_generation_prompt": True, "return_tensors": "pt", "return_dict": True}
    try:
        inputs = tokenizer.apply_chat_template(messages, **words)
    except Exception as error:  # the template is a program of its own
        raise Unusable(f"{folder}: its chat template cannot be used ({one_line(error)})") from error
    if int(inputs["input_ids"].max()) >= model.config.vocab_size:
        raise Unusable(f"{folder}: its tokenizer gives ids beyond vocab_size {model.config.vocab_size} of config.json")
    output = model.generate(**inputs, max_new_tokens=most, do_sample=False)
    return str(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)).strip()


def load(folder: Path) -> tuple[Any, Any]:
    """Model and tokenizer of a folder; nothing is fetched, no code of the folder is run.

    Raises:
        Unusable: something is missing or damaged.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loaded = []
    for what, kind in (("tokenizer", AutoTokenizer), ("model", AutoModelForCausalLM)):
        try:
            loaded.append(kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False))
        except Exception as error:  # transformers raises whatever its parts raise
            raise Unusable(f"{folder}: its {what} cannot be loaded ({one_line(error)})") from error
        if what == "tokenizer" and loaded[0].chat_template is None:
            raise Unusable(f"{folder}: holds {NO_TEMPLATE}")
    tokenizer, model = loaded
    if model.generation_config.eos_token_id is None:
        print(f"{folder}: generation_config.json names no eos_token_id: answers go on to the limit", file=sys.stderr)
    return model.eval(), tokenizer


def missing(folder: Path) -> list[str]:
    """What a folder lacks, one line each."""
    return [
        f"{folder}: holds no {what}; {advice}"
        for patterns, what, advice in NEEDED
        if not any(path.is_file() for pattern in patterns for path in folder.glob(pattern))
    ]


def one_line(error: Exception) -> str:
    """An error of a library in one line."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= SHOWN else text[:SHOWN] + " …"


def show(label: str, text: str, width: int) -> None:
    """A label and its text; further lines stand below the first."""
    text = text if len(text) <= SHOWN else text[:SHOWN] + " …"
    print(f"{label:{width}}{text}".replace("\n", "\n" + " " * width))


def typed() -> list[tuple[str, str]]:
    """One question from the terminal; none when it ends."""
    try:
        return [(input("> "), "")]
    except EOFError:
        return []


def ask(models: list[tuple[Path, Any, Any]], questions: list[tuple[str, str]], most: int) -> None:
    """Print the answers of all models to each question, or to what is typed if there are none."""
    asked = bool(questions)
    width = max(len(name) for name in ("question", "expected", *(folder.name for folder, _, _ in models))) + 2
    while questions or (not asked and (questions := typed())):
        question, expected = questions.pop(0)
        if asked:
            print()
            show("question", question, width)
        if expected:
            show("expected", expected, width)
        for folder, model, tokenizer in models:
            show(folder.name, answer(folder, model, tokenizer, question, most), width)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument("folders", type=Path, nargs="+", metavar="HF_DIR", help="folders of Hugging Face models")
    parser.add_argument("--prompt", action="append", help="a question; may be given several times")
    parser.add_argument("--ask", action="store_true", help="ask at the terminal, until end of file")
    parser.add_argument("--count", type=int, default=3, help="questions of the demo (default 3)")
    parser.add_argument("--max-new-tokens", type=int, default=96, help="most tokens of an answer (default 96)")
    arguments = parser.parse_args()
    if arguments.max_new_tokens < 1:
        parser.error(f"--max-new-tokens {arguments.max_new_tokens}: must be at least 1")
    if lacking := [line for folder in arguments.folders for line in missing(folder)]:
        parser.error("\n".join(lacking))
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
    except Unusable as reason:
        parser.error(str(reason))
    return 0


if __name__ == "__main__":
    sys.exit(main())
