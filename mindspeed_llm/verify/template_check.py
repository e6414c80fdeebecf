"""Compare the text that an exported model is prompted with and the text that it was trained on."""

from __future__ import annotations

from pathlib import Path

CONVERSATIONS: tuple[list[dict[str, str]], ...] = (
    [{"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "4"}],
    [
        {"role": "system", "content": "Answer briefly."},
        {"role": "user", "content": "Name a colour."},
        {"role": "assistant", "content": "Red."},
        {"role": "user", "content": "Another one."},
        {"role": "assistant", "content": "Blue."},
    ],
)
_SHOWN = 24


def template_difference(folder: Path, of_data: str) -> str | None:
    """Return where the template of a folder writes another text than that of the data.

    Args:
        folder: exported model, with its tokenizer.
        of_data: Jinja source of the template that the data were made with.

    Returns:
        The first difference; '' if there is none; None if the folder has no tokenizer that transformers can load.
    """
    import transformers

    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    for conversation in CONVERSATIONS:
        texts = []
        for template in (of_data, None):
            # A template may refuse a conversation, such as one with a system text; both must then refuse it.
            try:
                texts.append(str(tokenizer.apply_chat_template(conversation, chat_template=template, tokenize=False)))
            except Exception as error:  # noqa: PERF203
                texts.append(f"refused: {type(error).__name__}")
        if texts[0] != texts[1]:
            return _first_difference(*texts)
    return ""


def _first_difference(of_data: str, of_folder: str) -> str:
    """Return the two texts from their first difference on."""
    pairs = enumerate(zip(of_data, of_folder, strict=False))
    at = next((number for number, (one, other) in pairs if one != other), min(len(of_data), len(of_folder)))
    shown = [repr(text[at : at + _SHOWN]) for text in (of_data, of_folder)]
    return f"character {at}: {shown[0]} in the data, {shown[1]} in the export"
