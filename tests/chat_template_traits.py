"""Chat templates in Jinja with the traits of published ones, for tests; each is the smallest that has its trait."""

from __future__ import annotations

USUAL = """{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>
{{ m.content }}<|end|>
{% endfor %}{% if add_generation_prompt %}<|assistant|>
{% endif %}"""
# White space is removed from every message.
TRIMMED = USUAL.replace("{{ m.content }}", "{{ m['content'] | trim }}")
# No end token: the header of the next message ends an answer.
NO_END = """[g]{% for m in messages %}<|{{ m.role }}|>
{{ m.content.strip() }}{% for call in m.tool_calls %}
<call>{{ call.function.name }}</call>{% endfor %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"""
# Two tokens end an answer; only the second one is an end token.
TWO_ENDS = """{% for m in messages %}<|turn|><|{{ m.role }}|>\
{% if m.role == 'assistant' %}<|answer|>{{ m.content }}<|done|>{% else %}{{ m.content }}{% endif %}<|end|>{% endfor %}\
{% if add_generation_prompt %}<|turn|><|assistant|>{% endif %}"""
# Reasoning is removed from answers before the last message of the user, and the last answer gets an empty block.
THOUGHTS = """{% set ns = namespace(last=0) %}\
{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}\
{% for m in messages %}<|{{ m.role }}|>
{% if m.role == 'assistant' %}
{% set thought = m.reasoning_content or '' %}
{% set text = m.content %}
{% if '</think>' in text %}
{% set thought = text.split('</think>')[0].split('<think>')[-1].strip() %}
{% set text = text.split('</think>')[-1].lstrip() %}
{% endif %}
{% if loop.index0 > ns.last %}{{ '<think>\\n' + thought + '\\n</think>\\n\\n' }}{% endif %}{{ text }}
{%- for call in m.tool_calls %}<call>{{ call.function | tojson }}</call>{% endfor %}
{% else %}{{ m.content }}
{%- endif %}<|end|>
{% endfor %}{% if add_generation_prompt %}<|assistant|>
{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}{% endif %}"""
# The same, but the generation prompt opens a block of reasoning, so it is no beginning of earlier answers.
ASKS = THOUGHTS.replace(
    "{% if enable_thinking is defined",
    "{% if enable_thinking is not defined %}<think>\n{% endif %}{% if enable_thinking is defined",
)
# Content is a list of parts.
PARTS = USUAL.replace("{{ m.content }}", "{% for part in m['content'] %}{{ part['text'] }}{% endfor %}")
# No system text, and user and assistant in turn.
STRICT = "{% if messages[0].role == 'system' %}{{ raise_exception('no system text') }}{% endif %}" + USUAL
# A space that the generation prompt does not have belongs to the answer, and there is no generation prompt.
INSTRUCTION = (
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} {{ m.content }}<|end|>\
{% endif %}{% endfor %}"
)
DATED = USUAL.replace("{{ bos_token }}", "{{ strftime_now('%d %b %Y') }}\n")
TOOLS = """{% if tools %}<|tools|>{{ tools | tojson }}<|end|>
{% endif %}{% for m in messages %}<|{{ m.role }}|>{{ m.name }}{{ m.tool_call_id }}
{{ m.content }}{% for call in m.tool_calls or [] %}<call>{{ call.id }}{{ call.function.name }}\
{{ call.function.arguments | tojson }}</call>{% endfor %}<|end|>
{% endfor %}{% if add_generation_prompt %}<|assistant|>
{% endif %}"""
# An answer is marked in two pieces: its text and its end.
TWO_MARKS = """{% for m in messages %}<|{{ m.role }}|>
{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}<|then|>{% generation %}<|end|>\
{% endgeneration %}{% else %}{{ m.content | trim }}<|end|>{% endif %}

{% endfor %}"""

TEMPLATES = {
    "usual": USUAL,
    "trimmed": TRIMMED,
    "no end": NO_END,
    "two ends": TWO_ENDS,
    "thoughts": THOUGHTS,
    "asks": ASKS,
    "parts": PARTS,
    "strict": STRICT,
    "instruction": INSTRUCTION,
    "dated": DATED,
    "tools": TOOLS,
    "two marks": TWO_MARKS,
}
END_TOKENS = {"no end": ["</s>", "<|user|>", "<|tool|>"]}  # of the other templates: <|end|>
