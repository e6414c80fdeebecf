"""Find the chat templates of a tokenizer's folder, as transformers does.

chat_template.jinja                       the template "default"
additional_chat_templates/NAME.jinja      further templates by name
tokenizer_config.json: chat_template      one template, or a list of {"name", "template"}; not read beside
                                          chat_template.jinja
"""

from __future__ import annotations

from pathlib import Path

from mindspeed_llm.chat.special_tokens import read_special_tokens
from mindspeed_llm.errors import ConfigError

DEFAULT = "default"
FLAG = "--chat-template-name"


def find_templates(folder: Path) -> dict[str, str]:
    """Return the chat templates of a folder: name → Jinja; empty if there are none.

    Raises:
        ConfigError: a file cannot be read.
    """
    named: dict[str, str] = {}
    files = {DEFAULT: folder / "chat_template.jinja"}
    files |= {path.stem: path for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
    files = {name: path for name, path in files.items() if path.is_file()}
    if files:
        return {name: read_template(path, "--tokenizer-name-or-path") for name, path in files.items()}
    source = read_special_tokens(folder).settings.get("chat_template")
    if isinstance(source, str):
        return {DEFAULT: source}
    for entry in source if isinstance(source, list) else []:
        name, template = (entry.get("name"), entry.get("template")) if isinstance(entry, dict) else (None, None)
        if isinstance(name, str) and isinstance(template, str):
            named[name] = template
    return named


def read_template(path: Path, flag: str) -> str:
    """Return the content of a template file.

    Args:
        path: the file.
        flag: flag that names the file or its folder.

    Raises:
        ConfigError: the file cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{flag}: {path} cannot be read ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{flag}: {path} is not UTF-8 ({error}); give a file with a template in Jinja") from error


def choose_template(folder: str | None, name: str | None) -> str:
    """Return the Jinja of the template `name`, or of the only or default one.

    Args:
        folder: Hugging Face folder of the tokenizer; None if the flag is not given.
        name: --chat-template-name.

    Raises:
        ConfigError: there is no such template, or several and none of them is the default.
    """
    if folder is None:
        raise ConfigError("--prompt-type hf needs --tokenizer-name-or-path DIR: the chat template is read from it")
    templates = find_templates(Path(folder))
    if not templates:
        raise ConfigError(
            f"--prompt-type hf: {folder} contains no chat template; use one of this project's templates, or give one "
            "with --chat-template FILE"
        )
    names = ", ".join(templates)
    if name is not None and name not in templates:
        raise ConfigError(f"{FLAG} {name}: {folder} contains no chat template of this name; it contains {names}")
    if name is None and DEFAULT not in templates:
        raise ConfigError(
            f"--prompt-type hf: {folder} contains several chat templates and no default one; choose one "
            f"with {FLAG}: {names}"
        )
    return templates[DEFAULT if name is None else name]
