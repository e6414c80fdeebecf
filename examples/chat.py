"""Send prompts to one or more Hugging Face models and print their answers.

    python examples/chat.py HF_DIR [HF_DIR ...] [--prompt TEXT | --ask]

The models are loaded with transformers from the folders alone, as vLLM or any other program would load the output of
`--save-hf` or convert_ckpt.py. Answers are generated greedily. If several folders are given, each model answers every
prompt, for example a model before and after fine-tuning. Without --prompt, a few questions of the demo data are used;
--ask reads questions from the terminal. Requires transformers (pip install '.[chat]').

A folder may also be an adapter, as --save-hf writes it: LoRA or virtual tokens of peft (pip install '.[peft]'), or
bottleneck adapters, which need no peft. Its base model is the one that adapter_config.json names.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
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
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
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
        UnusableModelError: If the chat template fails, the tokenizer's ids exceed the model's vocabulary, or a question
            exceeds its positions.
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
    # GPT-2 has a table of positions: beyond it the lookup would fail with an index error.
    positions, length = getattr(model.config, "n_positions", None), inputs["input_ids"].shape[1]
    if positions is not None and length > positions:
        raise UnusableModelError(f"{folder}: the question has {length} tokens, but the model has {positions} positions")
    if positions is not None:
        max_new_tokens = min(max_new_tokens, positions - length + 1)  # the last new token is not looked up
    output = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    return str(tokenizer.decode(output[0, length:], skip_special_tokens=True)).strip()


def load(folder: Path) -> tuple[Any, Any]:
    """Load the model and the tokenizer of a folder, without network access and without running code of the folder.

    Raises:
        UnusableModelError: If the model, the tokenizer or the chat template is missing or damaged.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    base = base_folder(folder)
    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    # The folder of an adapter has a tokenizer, but no config.json, from which the class of some tokenizers follows.
    tokenizer_folder = folder if has_tokenizer(folder) else base
    # The tokenizer is loaded first: it is small, so a missing chat template is reported before the weights are read.
    part = "tokenizer"
    try:
        config = {} if base == folder else {"config": AutoConfig.from_pretrained(base, **local)}
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder, **config, **local)
        if tokenizer.chat_template is None:
            raise UnusableModelError(f"{tokenizer_folder}: holds {NO_TEMPLATE}")
        part = "model" if base == folder else f"base model {base}"
        model = AutoModelForCausalLM.from_pretrained(base, **local)
        if base != folder:
            part = "adapter"
            model = with_adapter(model, folder)
    except UnusableModelError:
        raise
    except Exception as error:  # transformers passes on the exceptions of its many dependencies
        raise UnusableModelError(f"{folder}: its {part} cannot be loaded ({one_line(error)})") from error
    if model.generation_config.eos_token_id is None:
        print(
            f"{folder}: generation_config.json has no eos_token_id; every answer continues to --max-new-tokens",
            file=sys.stderr,
        )
    return model.eval(), tokenizer


def with_adapter(model: Any, folder: Path) -> Any:
    """Add the adapter in a folder to its base model, with the generation settings of the folder."""
    from transformers import GenerationConfig

    if is_bottleneck(folder):
        adapted = with_bottlenecks(model, folder)
    else:
        from peft import PeftModel

        with warnings.catch_warnings():
            # peft only warns if the weights of the adapter have other names, and then the base model would answer.
            warnings.filterwarnings("error", message="(?s).*missing adapter keys")
            adapted = PeftModel.from_pretrained(model, folder)
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    return adapted


def is_bottleneck(folder: Path) -> bool:
    """Return whether a folder holds bottleneck adapters, which peft does not have."""
    try:
        return bool(json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8")).get("peft_type") == "BOTTLENECK")
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


def with_bottlenecks(model: Any, folder: Path) -> Any:
    """Add bottleneck adapters: the output x of a module becomes x + up(gelu(down(x))), by a hook of the module.

    Raises:
        KeyError: If a tensor is missing.
    """
    import torch
    from safetensors.torch import load_file

    def hook_of(tensors: dict[str, torch.Tensor]) -> Any:
        def add(_: object, __: object, output: Any) -> Any:
            states = output[0] if isinstance(output, tuple) else output
            low = torch.nn.functional.linear(states, tensors["down.weight"], tensors["down.bias"])
            high = torch.nn.functional.linear(torch.nn.functional.gelu(low), tensors["up.weight"], tensors["up.bias"])
            return (states + high, *output[1:]) if isinstance(output, tuple) else states + high

        return add

    tensors = load_file(folder / ADAPTER_WEIGHTS)
    for number, layer in enumerate(model.model.layers):
        for place in ("self_attn", "mlp"):
            prefix = f"model.layers.{number}.{place}.adapter."
            parts = ("down.weight", "down.bias", "up.weight", "up.bias")
            own = {part: tensors[prefix + part].to(model.dtype) for part in parts}
            getattr(layer, place).register_forward_hook(hook_of(own))
    return model


def base_folder(folder: Path) -> Path:
    """Return the folder of an adapter's base model; `folder` itself if it is no adapter.

    Raises:
        UnusableModelError: If adapter_config.json is damaged, or the base model is not on this machine.
    """
    path = folder / ADAPTER_CONFIG
    if not path.is_file():
        return folder
    try:
        name = json.loads(path.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise UnusableModelError(f"{path}: cannot be read ({one_line(error)})") from error
    if not isinstance(name, str) or not Path(name).is_dir():
        raise UnusableModelError(
            f"{path}: its base model {name!r} is no folder on this machine; write the folder of the base model into "
            "base_model_name_or_path"
        )
    return Path(name)


def has_tokenizer(folder: Path) -> bool:
    """Return whether a folder contains the vocabulary of a tokenizer."""
    (patterns, _, _) = REQUIRED_FILES[-1]
    return any((folder / pattern).is_file() for pattern in patterns)


def missing_files(folder: Path) -> list[str]:
    """Return an error message for each required file that a folder does not contain."""
    try:
        base = base_folder(folder)
    except UnusableModelError as error:
        return [str(error)]
    required = REQUIRED_FILES[:-1] if base != folder and has_tokenizer(folder) else REQUIRED_FILES
    problems = [
        f"{base}: holds no {name}; {advice}"
        for patterns, name, advice in required
        if not any(path.is_file() for pattern in patterns for path in base.glob(pattern))
    ]
    if base != folder and not (folder / ADAPTER_WEIGHTS).is_file():
        problems.append(f"{folder}: holds no {ADAPTER_WEIGHTS}; give the folder that --save-hf has written")
    return problems


def one_line(error: Exception) -> str:
    """Format an exception as one line of at most MAX_SHOWN characters."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + " …"


def show(label: str, text: str, width: int) -> None:
    """Print a label and its text, with further lines of the text aligned below the first."""
    text = text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + " …"
    print(f"{label:{width}}{text}".replace("\n", "\n" + " " * width))


def read_question() -> list[tuple[str, str]]:
    """Read one question from the terminal; the list is empty at the end of the input, and after exit or quit."""
    try:
        while not (question := input("question (Ctrl-D or exit to end)> ").strip()):
            pass
    except EOFError:
        return []
    return [] if question.lower().lstrip("/") in ("exit", "quit") else [(question, "")]


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
    parser.add_argument(
        "folders", type=Path, nargs="+", metavar="HF_DIR", help="folders of Hugging Face models or of adapters"
    )
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
    if any((folder / ADAPTER_CONFIG).is_file() and not is_bottleneck(folder) for folder in arguments.folders):
        try:
            import peft  # noqa: F401  (loading an adapter needs it; without it the message here is clearer)
        except ImportError:
            parser.error("peft, which adapters need, is not installed: pip install '.[peft]'")
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
