"""Render chat templates in Jinja with transformers, as an independent reference."""

from __future__ import annotations

from typing import Any

from chat_messages import BEGIN, END


def rendered_jinja(jinja: str, messages: list[dict[str, Any]], **words: Any) -> str:
    """Return what apply_chat_template(tokenize=False) gives.

    Raises:
        jinja2.TemplateError: raised by the template.
    """
    from transformers.utils.chat_template_utils import render_jinja_template

    special = {"bos_token": BEGIN, "eos_token": END}
    texts, _ = render_jinja_template([messages], chat_template=jinja, **special, **words)
    return str(texts[0])
