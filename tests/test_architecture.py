"""Rules of the architecture: order of packages, side effects of imports, names, and calls reserved for one package."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest

from mindspeed_llm.families import families

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mindspeed_llm"

# Each package imports only packages that precede it (docs/architecture.md).
PACKAGES = (
    "errors",
    "interrupts",
    "storage",
    "console",
    "launcher_environment",
    "entry_point",
    "families",
    "adapters",
    "boundaries",
    "devices",
    "manifest",
    "arguments",
    "indexed_dataset",
    "lease",
    "rawdata",
    "chat",
    "tokenization",
    "packing",
    "preprocessing",
    "prepare_data",
    "attention",
    "model",
    "tuning",
    "data",
    "conversion",
    "checkpoints",
    "training",
    "generation",
    "dry_run",
    "verify",
    "plotting",
    "html_template",
    "reports",
    "pack_viewer",
    "recipe",
    "programs",
    "__main__",
    "megatron",
    "megatron_adaptor",
)
FORBIDDEN_NAMES = {"utils", "util", "common", "helpers", "helper", "misc"}
WITH_TORCH = {"attention", "model", "tuning", "conversion", "checkpoints", "training", "generation"}
WITH_TORCH |= {"dry_run", "verify"}
# Importing it is a user's entry point: the one module of this project whose import may patch another one.
ENTRY_BY_IMPORT = "megatron_adaptor"
WITHOUT_TORCH = tuple(name for name in PACKAGES if name not in WITH_TORCH)
MAX_LINES = 600


def python_files(under: Path) -> list[Path]:
    return sorted(path for path in under.rglob("*.py") if not any(part.startswith(".") for part in path.parts))


def package_of(path: Path, package: Path = PACKAGE) -> str:
    """Return the package of a file; "" for the package's own __init__."""
    parts = path.relative_to(package).with_suffix("").parts
    return "" if parts == ("__init__",) else parts[0]


def imported_packages(source: str, path: Path, package: Path = PACKAGE) -> list[tuple[int, str]]:
    """(line, package) of every import from our own package, relative ones too, also inside functions."""
    here = ("mindspeed_llm", *path.relative_to(package).parent.parts)
    found = []
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = list(here[: len(here) - node.level + 1]) if node.level else []
            base += node.module.split(".") if node.module else []
            names = [".".join([*base, alias.name]) for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "mindspeed_llm" and len(parts) > 1:
                found.append((node.lineno, parts[1]))
    return found


def upward_imports(source: str, path: Path, package: Path = PACKAGE) -> list[str]:
    """What breaks the order in one file: an import of a later package, or of something that is not a package."""
    name = package_of(path, package)
    problems = []
    for line, other in imported_packages(source, path, package):
        if other.startswith("__"):
            continue
        if other not in PACKAGES:
            problems.append(f"{path.name}:{line}: imports {other}, which is not a package of this project")
        elif name and PACKAGES.index(other) > PACKAGES.index(name):
            problems.append(f"{path.name}:{line}: {name} imports {other}, a later package")
    return problems


def test_import_order_check_can_fail() -> None:
    inside = PACKAGE / "chat" / "spans.py"
    assert upward_imports("from mindspeed_llm.errors import DataError\nfrom . import templates", inside) == []
    assert upward_imports("from mindspeed_llm.training import trainer", inside)
    assert upward_imports("def f():\n    import mindspeed_llm.model.gpt_model", inside)
    assert upward_imports("from ..packing import plan_packs", inside)
    assert upward_imports("from .. import attention", inside)
    assert upward_imports("from mindspeed_llm import utils", inside)
    assert upward_imports("from mindspeed_llm import __version__", inside) == []


def test_packages_have_known_names() -> None:
    entries = [p for p in PACKAGE.iterdir() if p.suffix == ".py" or (p.is_dir() and any(p.rglob("*.py")))]
    unknown = {p.stem for p in entries} - {*PACKAGES, "__init__"}
    assert not unknown, f"not in the list of packages: {sorted(unknown)}"


def test_imports_go_downward() -> None:
    problems = [line for path in python_files(PACKAGE) for line in upward_imports(path.read_text("utf-8"), path)]
    assert not problems, "\n".join(problems)


def test_nothing_imports_the_entry_by_import() -> None:
    """Nor the package behind it: the rest of this project does not know of Megatron-LM's training loop."""
    behind = {ENTRY_BY_IMPORT, "megatron"}
    files = [path for path in python_files(PACKAGE) if package_of(path) not in behind]
    sources = {path: path.read_text("utf-8") for path in files}
    found = [
        path.name for path, text in sources.items() if behind & {name for _, name in imported_packages(text, path)}
    ]
    assert not found and upward_imports("import mindspeed_llm.megatron", PACKAGE / "training" / "trainer.py")


def calls_at_import(source: str) -> list[str]:
    """Functions of this project that a module calls while it is imported, by name."""
    tree = ast.parse(source)
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module is not None]
    ours = [node for node in imports if str(node.module).startswith("mindspeed_llm")]
    own = {alias.asname or alias.name for node in ours for alias in node.names}
    statements = [node.value for node in tree.body if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)]
    return [ast.unparse(call.func) for call in statements if ast.unparse(call.func) in own]


def test_only_the_entry_by_import_acts_when_it_is_imported() -> None:
    assert calls_at_import("from mindspeed_llm.devices import apply_patches\napply_patches('cpu')") == ["apply_patches"]
    acting = [module_name(path) for path in python_files(PACKAGE) if calls_at_import(path.read_text("utf-8"))]
    assert acting == [f"mindspeed_llm.{ENTRY_BY_IMPORT}"]


# An import that would close a circle, made when it is needed instead, and why: {(importing, imported): reason}.
LATE_IMPORTS: dict[tuple[str, str], str] = {}


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def import_graph(sources: dict[str, str]) -> dict[str, set[str]]:
    """Module → modules of ours that it imports, wherever in it: late imports and those for types count too.

    Args:
        sources: text of every module by its name; a package by its own name.
    """
    graph: dict[str, set[str]] = {}
    for name, source in sources.items():
        package = name if any(other.startswith(name + ".") for other in sources) else name.rpartition(".")[0]
        found = set()
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
                base = ".".join([*above, *([node.module] if node.module else [])])
                found |= {f"{base}.{a.name}" if f"{base}.{a.name}" in sources else base for a in node.names}
        graph[name] = {other for other in found if other in sources and (name, other) not in LATE_IMPORTS}
    return graph


def import_circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The modules of each circle, sorted: those that can be reached from one another."""
    reached: dict[str, set[str]] = {}
    for start in graph:
        seen: set[str] = set()
        open_ones = list(graph[start])
        while open_ones:
            one = open_ones.pop()
            if one not in seen:
                seen.add(one)
                open_ones += graph[one]
        reached[start] = seen
    circles = {tuple(sorted(o for o in graph if o in reached[one] and one in reached[o])) for one in graph}
    return sorted(list(circle) for circle in circles if circle)


def test_import_cycle_check_can_fail() -> None:
    sources = {
        "p": "",
        "p.sub": "from p.sub.a import x",
        "p.sub.a": "from . import b",
        "p.sub.b": "def f():\n    from p.sub.c import y",
        "p.sub.c": "import p.sub.a\nfrom p import other",
        "p.other": "from typing import Any",
    }
    assert import_circles(import_graph(sources)) == [["p.sub.a", "p.sub.b", "p.sub.c"]]
    sources["p.sub.c"] = "from p import other"
    assert import_circles(import_graph(sources)) == []
    sources["p.sub.c"] = "from p.sub import x"
    assert import_circles(import_graph(sources)) == [["p.sub", "p.sub.a", "p.sub.b", "p.sub.c"]]
    assert import_circles({"a": {"a"}}) == [["a"]]


def test_there_are_no_import_cycles() -> None:
    graph = import_graph({module_name(path): path.read_text("utf-8") for path in python_files(PACKAGE)})
    assert len(graph) > 100 and graph["mindspeed_llm.rawdata"] >= {"mindspeed_llm.rawdata.row_reader"}
    circles = import_circles(graph)
    assert not circles, "\n".join(" ↔ ".join(circle) for circle in circles)


def test_no_package_is_named_utils_or_similar() -> None:
    named = [p for p in PACKAGE.rglob("*") if p.stem in FORBIDDEN_NAMES]
    assert not named, f"name what it holds: {named}"


def repeated(names: Iterable[str]) -> dict[str, int]:
    """Return the names that occur more than once, with their numbers."""
    return {name: count for name, count in Counter(names).items() if count > 1}


def test_module_names_are_unique() -> None:
    assert repeated(["a", "b", "a"]) == {"a": 2}
    modules = [path.stem for path in python_files(PACKAGE) if not path.stem.startswith("__")]
    assert len(modules) > 150 and not repeated(modules)


def test_public_class_names_are_unique() -> None:
    trees = [ast.parse(path.read_text("utf-8")) for path in python_files(PACKAGE)]
    classes = [node.name for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)]
    public = [name for name in classes if not name.startswith("_")]
    assert len(public) > 100 and not repeated(public)


# What a newcomer searches for, and the file that the search must find by its name or the first line of its docstring.
SEARCHES = {
    "attention mask": "boundaries.py",
    "chat template": "chat/chat_template.py",
    "checkpointer": "training/checkpointer.py",
    "dataloader": "data/dataloader.py",
    "gradient clipping": "training/train_step.py",
    "learning rate schedule": "training/learning_rate_schedule.py",
    "loss mask": "data/micro_batch.py",
    "packing algorithm": "packing/packing_algorithm.py",
    "process group": "training/process_groups.py",
    "resume": "checkpoints/resume.py",
}


@pytest.mark.parametrize("term", SEARCHES)
def test_a_search_for_a_standard_term_leads_to_its_file(term: str) -> None:
    found = set()
    for path in python_files(PACKAGE):
        name = path.relative_to(PACKAGE).as_posix()
        first_line = (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").partition("\n")[0]
        if term in f"{name} {first_line}".replace("_", " ").lower():
            found.add(name)
    assert SEARCHES[term] in found, found
    assert len(found) <= 12, "the term is in too many first lines"


def test_files_are_not_too_long() -> None:
    files = [
        *python_files(PACKAGE),
        *python_files(ROOT / "tests"),
        *python_files(ROOT / "examples"),
        *ROOT.glob("*.py"),
    ]
    long = {str(p.relative_to(ROOT)): n for p in files if (n := len(p.read_text("utf-8").splitlines())) > MAX_LINES}
    assert not long, f"over {MAX_LINES} lines: {long}"


def test_importing_the_package_does_nothing() -> None:
    program = (
        "import sys; sys.argv = ['x', '--no-such-flag']; import mindspeed_llm; "
        "heavy = {'torch', 'megatron', 'transformers', 'numpy'} & set(sys.modules); assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", WITHOUT_TORCH)
def test_packages_without_torch_import_none(name: str) -> None:
    if not (PACKAGE / name).exists() and not (PACKAGE / f"{name}.py").exists():
        pytest.skip(f"the package {name} is not built")
    heavy = "{'torch', 'megatron', 'transformers', 'matplotlib'}"
    program = f"import sys, mindspeed_llm.{name}; heavy = {heavy} & set(sys.modules); assert not heavy, heavy"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def imported_tests(source: str) -> list[str]:
    """Names of test modules that a test imports from: what two tests need belongs into a helper module."""
    nodes = list(ast.walk(ast.parse(source)))
    names = [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    names += [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    return [name for name in names if name.rpartition(".")[2].startswith("test_")]


def test_tests_import_helpers_from_helper_modules() -> None:
    assert imported_tests("from test_pretrain import RUN\nimport test_chat\nfrom tiny import pack") == [
        "test_pretrain",
        "test_chat",
    ]
    assert not {
        path.name: found for path in python_files(ROOT / "tests") if (found := imported_tests(path.read_text("utf-8")))
    }


def forbidden(source: str) -> list[str]:
    """Constructions that run code from data or through a shell, with their lines."""
    problems = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
            if any(
                m.split(".")[0] in {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal"} for m in modules
            ):
                problems.append(f"{node.lineno}: imports {modules}")
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if called in {"eval", "exec", "os.system", "os.popen", "torch.load"}:
            problems.append(f"{node.lineno}: calls {called}")
        for word in node.keywords:
            given = word.value.value if isinstance(word.value, ast.Constant) else None
            if word.arg in {"shell", "trust_remote_code", "allow_pickle"} and given is not False:
                problems.append(f"{node.lineno}: {word.arg}=")
            if word.arg == "weights_only" and given is not True:
                problems.append(f"{node.lineno}: weights_only must be True")
    return problems


def test_forbidden_call_check_can_fail() -> None:
    assert forbidden("import pickle") and forbidden("from pickle import loads")
    assert forbidden("subprocess.run(x, shell=True)") and forbidden("np.load(p, allow_pickle=True)")
    assert forbidden("eval(x)") and forbidden("torch.load(p, weights_only=True)")
    assert forbidden("f(weights_only=False)")
    assert forbidden("np.load(p, allow_pickle=False); model.eval(); TorchFile(p)") == []


def test_no_code_is_run_from_data() -> None:
    problems = []
    for path in [*python_files(PACKAGE), *python_files(ROOT / "examples"), *ROOT.glob("*.py")]:
        problems += [f"{path.relative_to(ROOT)}:{line}" for line in forbidden(path.read_text("utf-8"))]
    assert not problems, "\n".join(problems)


# Calls that only `storage` makes: whoever replaces, flushes or hashes a file does it with its functions.
OF_STORAGE = {"os.replace", "os.rename", "os.renames", "os.fsync", "os.fdatasync", "shutil.move"}


def storage_calls(source: str) -> list[str]:
    """Calls that rename, flush or hash files, with their lines: those of OF_STORAGE, hashlib and pathlib.

    `x.replace(y)` with one argument is pathlib's; strings take two. The dataclasses module has another `replace`.
    """
    problems = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            if "hashlib" in names:
                problems.append(f"{node.lineno}: imports hashlib")
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        called, method = ast.unparse(node.func), node.func.attr
        renames = method == "rename" or (method == "replace" and len(node.args) == 1)
        if called in OF_STORAGE or (renames and called != "dataclasses.replace"):
            problems.append(f"{node.lineno}: calls {called}")
    return problems


def test_storage_check_can_fail() -> None:
    assert storage_calls("import hashlib") and storage_calls("from hashlib import sha256")
    assert storage_calls("os.fsync(file.fileno())") and storage_calls("os.replace(a, b)")
    assert storage_calls("beside.replace(path)") and storage_calls("folder.rename(path)")
    assert storage_calls("text.replace('a', 'b'); dataclasses.replace(made)") == []


def test_only_storage_renames_flushes_and_hashes_files() -> None:
    problems = []
    for path in [*python_files(PACKAGE), *ROOT.glob("*.py")]:
        if not path.is_relative_to(PACKAGE / "storage"):
            problems += [f"{path.relative_to(ROOT)}:{line}" for line in storage_calls(path.read_text("utf-8"))]
    assert not problems, "use mindspeed_llm.storage:\n" + "\n".join(problems)


def family_names(source: str, names: set[str]) -> list[str]:
    """Return the lines that hold the name of a model family as a string."""
    constants = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant))
    return [
        f"{node.lineno}: {node.value!r}" for node in constants if isinstance(node.value, str) and node.value in names
    ]


def test_model_families_are_named_only_in_their_own_file() -> None:
    names = {name for family in families() for name in (family.model_type, family.architecture)}
    assert len(names) >= 8 and family_names("x = 1 if a == 'qwen2' else {'mistral': 1}", names) == [
        "1: 'qwen2'",
        "1: 'mistral'",
    ]
    files = [path for path in (*python_files(PACKAGE), *ROOT.glob("*.py")) if path.parent != PACKAGE / "families"]
    found = {str(path.relative_to(ROOT)): family_names(path.read_text("utf-8"), names) for path in files}
    assert not {path: lines for path, lines in found.items() if lines}


OF_LAUNCHERS = re.compile(
    r"(LOCAL_|GROUP_|NODE_)?RANK|(LOCAL_)?WORLD_SIZE|MASTER_(ADDR|PORT)|(TORCHELASTIC|SLURM|PMI|OMPI)_\w+|MA_VJ_NAME"
)


def launcher_variables(source: str) -> list[str]:
    """Names of launchers' variables that code has as strings of their own, with their lines; and torch's way to ask."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and OF_LAUNCHERS.fullmatch(node.value):
            found.append(f"{node.lineno}: {node.value}")
        if isinstance(node, ast.Attribute) and node.attr == "is_torchelastic_launched":
            found.append(f"{node.lineno}: {node.attr}")
    return found


def test_launcher_variables_are_read_in_one_module() -> None:
    assert launcher_variables("os.environ['RANK']; os.getenv('SLURM_JOB_ID', ''); env.get('LOCAL_WORLD_SIZE')")
    assert launcher_variables("f\"rank {os.environ.get('RANK', '0')}\"")
    assert launcher_variables("torch.distributed.is_torchelastic_launched()")
    assert not launcher_variables("print('set WORLD_SIZE to 8'); ranks = RANK")
    files = [
        path for path in [*python_files(PACKAGE), *ROOT.glob("*.py")] if path != PACKAGE / "launcher_environment.py"
    ]
    found = {str(path.relative_to(ROOT)): launcher_variables(path.read_text("utf-8")) for path in files}
    assert not {path: lines for path, lines in found.items() if lines}
    assert launcher_variables((PACKAGE / "launcher_environment.py").read_text("utf-8")), (
        "the names here are those that it reads"
    )


# Only these tell devices apart: whatever else differs between devices is an attribute of their records.
MAY_NAME_DEVICES = (PACKAGE / "devices", PACKAGE / "attention", PACKAGE / "model" / "fused_ops.py")
DEVICE_NAMES = {"cpu", "cuda", "npu"}


def device_names(source: str) -> list[str]:
    """Return the lines that hold the name of a device as a string, or compare something with 'meta'."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in DEVICE_NAMES:
            found.append(f"{node.lineno}: {node.value!r}")
        if isinstance(node, ast.Compare) and "'meta'" in map(ast.unparse, (node.left, *node.comparators)):
            found.append(f"{node.lineno}: {ast.unparse(node)}")
    return found


def test_device_check_can_fail() -> None:
    assert device_names("pin = device.kind == 'cuda'") and device_names("{'npu': 1}[kind]")
    assert device_names("if kind in ('cpu', 'meta'): pass") and device_names("gloo = device.kind != 'meta'")
    assert device_names("x = torch.device('meta'); y = device.traits.is_host; '--device cpu'") == []


def test_only_devices_attention_and_operators_distinguish_devices() -> None:
    files = [*python_files(PACKAGE), *ROOT.glob("*.py")]
    files = [path for path in files if not any(path.is_relative_to(place) for place in MAY_NAME_DEVICES)]
    found = {str(path.relative_to(ROOT)): device_names(path.read_text("utf-8")) for path in files}
    assert not {path: lines for path, lines in found.items() if lines}, "ask mindspeed_llm.devices.traits_of"


# Built from parts, so that this file does not match itself.
MACHINE_PATHS = re.compile(
    "|".join(rf"(?<![\w.$}}]){re.escape('/' + top)}/\w" for top in ("home", "root", "work", "Users"))
)
TEXT = {".py", ".sh", ".md", ".toml", ".txt", ".yaml", ".yml", ".json", ".cfg", ""}


def test_no_file_contains_paths_of_one_machine() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    problems = []
    for name in listed.stdout.split("\0"):
        path = ROOT / name
        if not name or path.suffix not in TEXT or not path.is_file():
            continue
        for number, line in enumerate(path.read_text("utf-8", errors="replace").splitlines(), 1):
            if MACHINE_PATHS.search(line):
                problems.append(f"{name}:{number}: {line.strip()[:100]}")
    assert not problems, "\n".join(problems)
    assert MACHINE_PATHS.search("open('/" + "home/user/x')") and not MACHINE_PATHS.search("see examples/home/x")


# PretrainArguments is for functions that read three groups or more, or that hand all arguments on.
ALL_ARGUMENTS, FEW_GROUPS = "PretrainArguments", 2


def wide_functions(source: str) -> list[str]:
    """Functions that take all arguments, read two groups or fewer of them, and do not hand them on."""
    found = []
    for function in ast.walk(ast.parse(source)):
        if not isinstance(function, ast.FunctionDef):
            continue
        for argument in [*function.args.args, *function.args.kwonlyargs]:
            if argument.annotation is None or ALL_ARGUMENTS not in ast.unparse(argument.annotation):
                continue
            nodes = list(ast.walk(function))
            read = [
                node
                for node in nodes
                if isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id == argument.arg
            ]
            uses = [node for node in nodes if isinstance(node, ast.Name) and node.id == argument.arg]
            if len(uses) == len(read) and len({node.attr for node in read}) <= FEW_GROUPS:
                found.append(f"{function.name} (line {function.lineno})")
    return found


def test_argument_group_check_can_fail() -> None:
    assert wide_functions("def f(arguments: PretrainArguments):\n    return arguments.model.swiglu, arguments.data")
    assert wide_functions("def f(arguments: PretrainArguments):\n    g(arguments)") == []
    reads = ", ".join(f"arguments.{group}" for group in ("model", "data", "training"))
    assert wide_functions(f"def f(arguments: PretrainArguments):\n    return {reads}") == []


def test_functions_take_the_groups_of_arguments_that_they_read() -> None:
    files = [path for path in python_files(PACKAGE) if package_of(path) != "arguments"]
    problems = [f"{path.name}: {name}" for path in files for name in wide_functions(path.read_text("utf-8"))]
    assert not problems, f"take the groups in place of {ALL_ARGUMENTS}: {problems}"
