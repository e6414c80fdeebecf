"""From a row to a conversation, and from a conversation to spans of text of which some are trained.

    handler.conversation(row)      -> Conversation(turns, system)
    template.render(conversation)  -> for each turn the spans of its prompt and of its answer

No tokens here: a span is text, or the name of a special token. Templates are data, see templates.py.
"""

from mindspeed_llm.chat.conversation import BadRow, Conversation, Turn
from mindspeed_llm.chat.handlers import HANDLERS, Handler, handler_named, parse_map_keys
from mindspeed_llm.chat.templates import RenderedTurn, Span, Template, load_template, template_names

__all__ = [
    "HANDLERS",
    "BadRow",
    "Conversation",
    "Handler",
    "RenderedTurn",
    "Span",
    "Template",
    "Turn",
    "handler_named",
    "load_template",
    "parse_map_keys",
    "template_names",
]
