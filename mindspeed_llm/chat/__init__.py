"""Convert rows into conversations, and render conversations with a chat template into trained and untrained text.

    handler.conversation(row)      -> Conversation(turns, system)
    template.render(conversation)  -> list of RenderedTurn(prompt spans, answer spans), one per turn

This package handles no token ids: a span is text or the name of a special token. Templates are JSON files, see
chat_template.py.
"""

from mindspeed_llm.chat.answer_spans import ANSWER_NOT_FOUND
from mindspeed_llm.chat.chat_template import ChatTemplate, chat_template_names, load_chat_template, plain_text_template
from mindspeed_llm.chat.conversation import Conversation, FunctionCall, InvalidRowError, Turn, iter_texts, map_texts
from mindspeed_llm.chat.handlers import (
    HANDLERS,
    Handler,
    SharegptHandler,
    create_handler,
    fitting_handlers,
    parse_map_keys,
)
from mindspeed_llm.chat.jinja_export import export_chat_template
from mindspeed_llm.chat.jinja_template import JinjaTemplate, load_jinja_template
from mindspeed_llm.chat.renderer import RenderedTurn, Renderer, Span
from mindspeed_llm.chat.template_files import find_templates
from mindspeed_llm.chat.tool_formats import tool_formats

__all__ = [
    "ANSWER_NOT_FOUND",
    "HANDLERS",
    "ChatTemplate",
    "Conversation",
    "FunctionCall",
    "Handler",
    "InvalidRowError",
    "JinjaTemplate",
    "RenderedTurn",
    "Renderer",
    "SharegptHandler",
    "Span",
    "Turn",
    "chat_template_names",
    "create_handler",
    "export_chat_template",
    "find_templates",
    "fitting_handlers",
    "iter_texts",
    "load_chat_template",
    "load_jinja_template",
    "map_texts",
    "parse_map_keys",
    "plain_text_template",
    "tool_formats",
]
