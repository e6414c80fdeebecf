"""The Jinja environment: that of transformers, in a sandbox, with limits.

In the sandbox a template cannot modify its arguments or reach Python's internals. What it may compute for one row is
limited (jinja_limits.py). The environment counts iterations where a loop takes its next value, calls where they are
made, and texts at operators, filters, methods and outputs. It must not be used by two threads at the same time. Only
this module imports jinja2; import it where a template is loaded, because the library takes part of the start-up time.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import Template, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import do_join
from jinja2.runtime import LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from mindspeed_llm.chat.content_marks import GENERATION_CLOSE, GENERATION_OPEN
from mindspeed_llm.chat.jinja_limits import CALL, MAX_STEPS, LimitExceededError, RenderBudget

COUNTED = "iterations of a loop"  # a name that no template can write
# Filters that turn their value into text.
TEXT_FILTERS = frozenset(
    (
        *("string", "trim", "upper", "lower", "capitalize", "title", "replace", "escape", "e", "safe", "indent"),
        *("truncate", "wordcount", "format", "center"),
    )
)
# Filters that no chat template needs and whose result has no simple bound.
REMOVED_FILTERS = ("wordwrap", "urlize", "xmlattr", "pprint", "urlencode", "forceescape", "striptags", "filesizeformat")
MAX_INDENT = 16
STR = {str}
DICT_ATTRIBUTES = frozenset(dir(dict))
SAFE_ATTRIBUTES: dict[type, frozenset[str]] = {
    LoopContext: frozenset(("first", "last", "index", "index0", "previtem", "nextitem", "length")),
    str: frozenset(("startswith", "endswith", "strip", "lstrip", "rstrip", "split")),
}


class Generation(Extension):
    """The tag {% generation %} … {% endgeneration %}, which puts marks around the text of an answer."""

    tags = {"generation"}  # noqa: RUF012 - jinja's own declaration

    def parse(self, parser: Any) -> Any:
        """Parse the tag and its content."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

    def _marked(self, caller: Any) -> str:
        return GENERATION_OPEN + caller() + GENERATION_CLOSE


class CountingCodeGenerator(CodeGenerator):
    """Jinja's compiler, except that the environment adds the operands of `+` and `~` and counts slices."""

    def visit_Add(self, node: nodes.BinExpr, frame: Frame) -> None:  # noqa: N802 - jinja2's name
        """Write the code of `a + b + c` as one call, because nearly all work of a template is such sums."""
        operands: list[nodes.Expr] = []
        left: nodes.Expr = node
        while isinstance(left, nodes.Add):
            operands.insert(0, left.right)
            left = left.left
        self.write("environment.added((")
        for operand in (left, *operands):
            self.visit(operand, frame)
            self.write(", ")
        self.write("))")

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802 - jinja2's name
        """Write the code of `a ~ b`."""
        self.write("environment.concatenated((")
        for operand in node.nodes:
            self.visit(operand, frame)
            self.write(", ")
        self.write("))")

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:  # noqa: N802 - jinja2's name
        """Write the code of `a[b]`."""
        is_slice = isinstance(node.arg, nodes.Slice)
        self.write("environment.budget.spend_result(" if is_slice else "")
        super().visit_Getitem(node, frame)
        self.write(")" if is_slice else "")


class ChatEnvironment(ImmutableSandboxedEnvironment):
    """Environment of one chat template.

    Args:
        strftime_now: function of the template of this name, format → text.

    Attributes:
        budget: what the current rendering has used up.
    """

    # Intercepted operators are not computed at compile time either.
    intercepted_binops = frozenset(("+", "*", "**", "%"))
    code_generator_class = CountingCodeGenerator

    def __init__(self, strftime_now: Callable[[str], str]) -> None:
        self.budget = RenderBudget()
        self._constants = 0
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
        self.finalize = self._counted_output
        for name in REMOVED_FILTERS:
            del self.filters[name]
        self.filters = {name: self._limited(name, function) for name, function in self.filters.items()}
        self.filters |= {"tojson": self._to_json, "join": self._join, "sum": self._sum, COUNTED: self.budget.counted}
        del self.globals["lipsum"]
        self.globals |= {"raise_exception": _refuse, "strftime_now": strftime_now}

    def getattr(self, obj: Any, attribute: str) -> Any:
        """Return `obj.attribute`; what templates use all the time without the checks of the sandbox."""
        kind = type(obj)
        if kind is dict and attribute not in DICT_ATTRIBUTES:
            return obj[attribute] if attribute in obj else self.undefined(obj=obj, name=attribute)
        if attribute in SAFE_ATTRIBUTES.get(kind, ()) or (
            kind is Namespace and not attribute.startswith("_") and hasattr(obj, attribute)
        ):
            return getattr(obj, attribute)
        return super().getattr(obj, attribute)

    def added(self, values: tuple[Any, ...]) -> Any:
        """Return the sum of the operands of `+`."""
        if set(map(type, values)) == STR:
            text = "".join(values)
            self.budget.spend(len(text))
            return text
        total = values[0]
        for value in values[1:]:
            total = self.budget.spend_result(total + value)
        return total

    def concatenated(self, values: tuple[Any, ...]) -> str:
        """Return the operands of `~` as one text."""
        self.budget.spend(sum(map(self.budget.text_size, values)))
        return "".join(map(str, values))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Apply an operator between two values."""
        self.budget.check_operator(operator, left, right)
        return self.binop_table[operator](left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805 - as in jinja2
        """Call a function, a method or a macro of the template."""
        budget = __self.budget
        budget.step(CALL)
        if isinstance(__obj, Macro):
            budget.spend(__self._constants)
        elif isinstance(__obj, LoopContext):  # loop(...) of a recursive loop
            args = (budget.counted(args[0], __self._constants), *args[1:])
        else:
            method = getattr(__obj, "__wrapped__", __obj)
            owner = getattr(method, "__self__", None)
            if isinstance(owner, (str, int)):
                if method.__name__ == "join" and args:
                    args = ([*budget.counted(args[0])],)
                budget.check_method(owner, method.__name__, args, kwargs)
        return budget.spend_result(super().call(__context, __obj, *args, **kwargs))

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template = super()._parse(source, name, filename)
        self._constants = _constant_size(template)
        for loop in list(template.find_all(nodes.For)):
            size = nodes.Const(sum(map(_constant_size, loop.body)))
            loop.iter = nodes.Filter(loop.iter, COUNTED, [size], [], None, None, lineno=loop.lineno)
        template.set_environment(self)
        return template

    def _counted_output(self, value: Any) -> Any:
        self.budget.spend(len(value) if type(value) is str else self.budget.text_size(value))
        return value

    def _limited(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a filter that counts its result, and refuses numbers such as the width of `center` if too large."""
        budget, makes_text = self.budget, name in TEXT_FILTERS

        @functools.wraps(function)
        def limited(*arguments: Any, **named: Any) -> Any:
            values = [*arguments, *named.values()]
            if any(type(value) is int and value > MAX_STEPS for value in values):
                raise LimitExceededError(f"gives the filter {name} a number over {MAX_STEPS:,}")
            if makes_text:
                for value in values:
                    if isinstance(value, (list, tuple, dict)):
                        budget.spend(budget.text_size(value))
            texts = [value for value in values if isinstance(value, str)]
            if name == "replace" and len(texts) == 3:
                budget.check_replacement(*texts)
            elif name == "indent" and texts:
                width = max([len(texts[-1]), 4, *(value for value in values if type(value) is int)])
                budget.spend((texts[0].count("\n") + 1) * width)
            elif name == "format" and texts:
                budget.check_percent_format(texts[0], values[1:])
            return budget.spend_result(function(*arguments, **named))

        return limited

    def _to_json(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: Any = None,
        separators: Any = None,
        sort_keys: bool = False,
    ) -> str:
        # As in transformers: Jinja's own filter escapes characters of HTML such as <, which changes the tokens.
        if any((size if isinstance(size, int) else len(size)) > MAX_INDENT for size in (indent, separators) if size):
            raise LimitExceededError(f"writes JSON with an indentation over {MAX_INDENT}")
        self.budget.spend(self.budget.text_size(value))
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    @property
    def _join(self) -> Callable[..., str]:
        budget = self.budget

        @functools.wraps(do_join)
        def join(context: Any, value: Any, d: Any = "", attribute: Any = None) -> str:
            entries = [*budget.counted(value)]
            budget.spend(budget.text_size(entries) + len(entries) * budget.text_size(d))
            return str(do_join(context, entries, d, attribute))

        return join

    def _sum(self, values: Any, attribute: Any = None, start: Any = 0) -> Any:
        if not isinstance(start, (int, float)):
            raise LimitExceededError("adds up other things than numbers")
        chosen = values if attribute is None else (self.getitem(value, attribute) for value in values)
        return sum(self.budget.counted(chosen), start)


def _constant_size(node: nodes.Node) -> int:
    """Return the number of characters of the constant texts in a part of a template."""
    values: list[Any] = [data.data for data in node.find_all(nodes.TemplateData)]
    values += [constant.value for constant in node.find_all(nodes.Const)]
    return sum(len(value) for value in values if isinstance(value, str))


def _refuse(message: str) -> None:
    raise TemplateError(message)


def constant_generation_prompt(
    environment: ChatEnvironment, source: str, context: Mapping[str, Any]
) -> Callable[[Mapping[str, Any]], str] | None:
    """Return a function that renders the generation prompt alone, if it is the same after every conversation.

    It is, if the template ends with `{% if add_generation_prompt %} ... {% endif %}`, this is the only use of the
    variable, and the text inside depends on nothing but `context` and enable_thinking, which the template does not set.

    Args:
        environment: environment of the template.
        source: the template in Jinja.
        context: variables that are the same for all conversations.

    Returns:
        A function of further variables; None if the template is of another form.
    """
    template = environment.parse(source)
    last = template.body[-1] if template.body else None
    allowed = {*context, "enable_thinking"}
    names = [*template.find_all(nodes.Name)]
    asked = [name for name in names if name.name == "add_generation_prompt"]
    if not isinstance(last, nodes.If) or asked != [last.test] or last.elif_:
        return None
    inside = {name.name for statement in last.body for name in statement.find_all(nodes.Name)}
    if not inside <= allowed or any(name.ctx != "load" and name.name in allowed for name in names):
        return None
    alone = nodes.Template(last.body, lineno=1)
    alone.set_environment(environment)
    code = environment.compile(alone)
    prompt = Template.from_code(environment, code, environment.make_globals(None))
    return lambda variables: prompt.render({**context, **variables})
