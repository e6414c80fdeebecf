"""Rules for docstrings that ruff does not have: shapes of arrays, and the errors that a public function raises."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mindspeed_llm"
ARRAYS = re.compile(r"\b(ndarray|NDArray|Tensor)\b")
SHAPE = re.compile(r"\[[^\[\]]*[\w….][^\[\]]*\]")
Function = ast.FunctionDef | ast.AsyncFunctionDef


def error_classes() -> set[str]:
    """Return the names of the public exception classes of this package."""
    classes = {
        node.name: {ast.unparse(base).rpartition(".")[2] for base in node.bases}
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ClassDef)
    }
    found = {name for name, bases in classes.items() if bases & {"Exception", "ValueError"}}
    while more := {name for name, bases in classes.items() if bases & found} - found:
        found |= more
    return {name for name in found if not name.startswith("_")}


ERRORS = error_classes() | {"ValueError"}


def public_functions(tree: ast.Module) -> Iterator[tuple[str, Function, str]]:
    """Yield (qualified name, function, docstring) of each public function and method.

    The docstring of `__init__` is that of its class. Properties and overloads are included, protocols as well.
    """
    for node in tree.body:
        if isinstance(node, Function) and not node.name.startswith("_"):
            yield node.name, node, ast.get_docstring(node) or ""
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for method in node.body:
                if isinstance(method, Function) and method.name == "__init__":
                    yield f"{node.name}.__init__", method, ast.get_docstring(method) or ast.get_docstring(node) or ""
                elif isinstance(method, Function) and not method.name.startswith("_"):
                    yield f"{node.name}.{method.name}", method, ast.get_docstring(method) or ""


def has_array(function: Function) -> bool:
    """Return whether the function takes or returns an array or a tensor, by its annotations."""
    arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    annotations = [argument.annotation for argument in arguments] + [function.returns]
    return any(ARRAYS.search(ast.unparse(annotation)) for annotation in annotations if annotation is not None)


def without_shape(source: str) -> list[str]:
    """Return the public functions with arrays whose docstring names no shape, such as [T, heads, size]."""
    functions = public_functions(ast.parse(source))
    return [f"{f.lineno}: {name}" for name, f, text in functions if has_array(f) and not SHAPE.search(text)]


def catches_ours(handler: ast.ExceptHandler) -> bool:
    """Return whether an except clause catches one of our errors."""
    caught = set(re.findall(r"\w+", ast.unparse(handler.type))) if handler.type is not None else {"Exception"}
    return bool(caught & (ERRORS | {"Exception", "ValueError"}))


def uncaught_nodes(function: Function) -> Iterator[ast.AST]:
    """Yield the nodes of a function, without blocks whose errors it catches and without nested functions."""
    todo: list[ast.AST] = list(function.body)
    while todo:
        node = todo.pop()
        if isinstance(node, (Function, ast.ClassDef, ast.Lambda)):
            continue
        if isinstance(node, ast.Try) and any(catches_ours(handler) for handler in node.handlers):
            todo += [*node.handlers, *node.orelse, *node.finalbody]
            continue
        yield node
        todo += ast.iter_child_nodes(node)


def raised_directly(function: Function) -> set[str]:
    """Return our errors that a function raises, without those that it catches and those of nested functions."""
    found = set()
    for node in uncaught_nodes(function):
        if isinstance(node, ast.Raise) and node.exc is not None:
            raised = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            found |= {ast.unparse(raised).rpartition(".")[2]} & ERRORS
    return found


def called_private_functions(function: Function) -> set[str]:
    """Return the names of private functions of the same module or class whose errors leave a function."""
    calls = {ast.unparse(node.func) for node in uncaught_nodes(function) if isinstance(node, ast.Call)}
    names = {name.removeprefix("self.").removeprefix("cls.") for name in calls}
    return {name for name in names if name.startswith("_") and not name.startswith("__")}


def without_raises(source: str) -> list[str]:
    """Return the public functions that raise one of our errors, themselves or in a private helper, but say nothing."""
    tree = ast.parse(source)
    private = {n.name: n for n in ast.walk(tree) if isinstance(n, Function) and n.name.startswith("_")}
    problems = []
    for name, function, text in public_functions(tree):
        reached, todo = {function.name}, [function]
        errors: set[str] = set()
        while todo:
            one = todo.pop()
            errors |= raised_directly(one)
            for helper in called_private_functions(one) - reached:
                reached.add(helper)
                todo += [private[helper]] if helper in private else []
        if errors and "Raises:" not in text:
            problems.append(f"{function.lineno}: {name} raises {', '.join(sorted(errors))}")
    return problems


def test_the_docstring_rules_can_fail() -> None:
    assert {"UserError", "DataError", "SaveError", "InvalidRowError", "LostRankError"} <= ERRORS
    array = 'def f(x: torch.Tensor) -> int:\n    """Return x{}."""'
    assert without_shape(array.format("")) == ["1: f"] and without_shape(array.format(" [T, h]")) == []
    assert without_shape('class A:\n    def g(self) -> "NDArray[np.int64]":\n        """Return ids."""') == ["2: A.g"]
    assert without_shape(array.format("").replace("def f", "def _f")) == []
    raises = 'def f():\n    """Do it.{}"""\n    {}\n\ndef _g():\n    raise errors.DataError("x")'
    assert without_raises(raises.format("", 'raise ConfigError("x")')) == ["1: f raises ConfigError"]
    assert without_raises(raises.format("", "return _g()")) == ["1: f raises DataError"]
    assert without_raises(raises.format("\n\n    Raises:\n        DataError: always.\n    ", "return _g()")) == []
    assert without_raises(raises.format("", "raise ValueError")) == ["1: f raises ValueError"]
    assert without_raises(raises.format("", "raise KeyError")) == []
    helper = "try:\n        return _g()\n    except DataError:\n        return 1"
    assert without_raises(raises.format("", helper)) == []
    caught = "try:\n        raise DataError(1)\n    except {} as error:\n        {}"
    assert without_raises(raises.format("", caught.format("UserError", "pass"))) == []
    assert without_raises(raises.format("", caught.format("OSError", "pass"))) == ["1: f raises DataError"]
    assert without_raises(raises.format("", caught.format("DataError", "raise ConfigError(error)"))) == [
        "1: f raises ConfigError"
    ]


def test_docstrings_of_functions_with_arrays_name_shapes() -> None:
    found = {path: without_shape(path.read_text("utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}
    problems = [f"{path.relative_to(ROOT)}:{line}" for path, lines in found.items() for line in lines]
    assert not problems, "\n".join(problems)


def test_docstrings_name_the_errors_that_a_function_raises() -> None:
    found = {path: without_raises(path.read_text("utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}
    problems = [f"{path.relative_to(ROOT)}:{line}" for path, lines in found.items() for line in lines]
    assert not problems, "\n".join(problems)
