"""From a row to a conversation, and from a conversation to spans of text of which some are trained.

    handler.conversation(row)      -> Conversation(turns, system)
    template.render(conversation)  -> for each turn the spans of its prompt and of its answer

No tokens here: a span is text, or the name of a special token. Templates are data, see chat_template.py.
"""

from mindspeed_llm.chat.chat_template import Template, load_template, plain_text_template, template_names
from mindspeed_llm.chat.conversation import BadRow, Call, Conversation, Turn, texts_of, with_texts
from mindspeed_llm.chat.handlers import HANDLERS, Handler, handler_named, parse_map_keys
from mindspeed_llm.chat.jinja_export import chat_template_of
from mindspeed_llm.chat.jinja_template import ChatTemplate, load_chat_template
from mindspeed_llm.chat.renderer import RenderedTurn, Renderer, Span
from mindspeed_llm.chat.tool_formats import tool_formats

__all__ = [
    "HANDLERS",
    "BadRow",
    "Call",
    "ChatTemplate",
    "Conversation",
    "Handler",
    "RenderedTurn",
    "Renderer",
    "Span",
    "Template",
    "Turn",
    "chat_template_of",
    "handler_named",
    "load_chat_template",
    "load_template",
    "parse_map_keys",
    "plain_text_template",
    "template_names",
    "texts_of",
    "tool_formats",
    "with_texts",
]
