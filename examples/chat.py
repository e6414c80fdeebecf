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


def answer(model: Any, tokenizer: Any, question: str, most: int) -> str:
    """The model's own continuation of a conversation with one question."""
    messages = [{"role": "user", "content": question}]
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**inputs, max_new_tokens=most, do_sample=False)
    return str(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)).strip()


def load(folder: Path) -> tuple[Any, Any]:
    """Model and tokenizer of a folder; nothing is fetched, no code of the folder is run."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return (
        AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, trust_remote_code=False).eval(),
        AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False),
    )


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


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument("folders", type=Path, nargs="+", metavar="HF_DIR", help="folders of Hugging Face models")
    parser.add_argument("--prompt", action="append", help="a question; may be given several times")
    parser.add_argument("--ask", action="store_true", help="ask at the terminal, until end of file")
    parser.add_argument("--count", type=int, default=3, help="questions of the demo (default 3)")
    parser.add_argument("--max-new-tokens", type=int, default=96, help="most tokens of an answer (default 96)")
    arguments = parser.parse_args()
    for folder in arguments.folders:
        if not (folder / "config.json").is_file():
            parser.error(f"{folder}: holds no config.json; give the folder of a Hugging Face model")
    try:
        import transformers
    except ImportError:
        parser.error("transformers is not installed: pip install '.[chat]'")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    models = [(folder, *load(folder)) for folder in arguments.folders]

    questions = [(text, "") for text in arguments.prompt or ()]
    if not questions and not arguments.ask:
        questions = demo_questions(arguments.count)
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
            show(folder.name, answer(model, tokenizer, question, arguments.max_new_tokens), width)
    return 0


if __name__ == "__main__":
    sys.exit(main())
