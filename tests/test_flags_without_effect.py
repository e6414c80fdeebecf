"""docs/flags-without-effect.md against the program: notices, devices, alternative names and environment variables."""

from __future__ import annotations

import inspect
import re
from collections import Counter
from pathlib import Path

import pytest
from upstream_scripts import SCRIPTS

from mindspeed_llm.arguments import notices
from mindspeed_llm.arguments.dataclass_parser import declared_flags
from mindspeed_llm.arguments.pretrain_arguments import GROUPS
from mindspeed_llm.devices.device_traits import DEVICES, traits_of

ROOT = Path(__file__).parents[1]
SECTIONS = re.split(r"^## ", (ROOT / "docs/flags-without-effect.md").read_text("utf-8"), flags=re.MULTILINE)
FLAG = re.compile(r"--[a-z][\w-]*")


def rows_of(title: str) -> list[list[str]]:
    """Cells of the table in a section."""
    (section,) = [section for section in SECTIONS if section.startswith(title)]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_flags_that_never_have_an_effect() -> None:
    expected = [(f"`{flag}`", "all", why) for flag, why in notices.ALWAYS.items()]
    for device in DEVICES:
        expected += [(f"`{flag}`", device, why) for flag, why in traits_of(device).ignored_flags.items()]
    assert [tuple(row) for row in rows_of("Always")] == expected


def test_flags_that_have_no_effect_in_some_commands() -> None:
    """Every conditional notice that a flag has no effect is in the table."""
    source = inspect.getsource(notices._ignored_in_this_command)
    named = set(re.findall(r'\("(--[\w-]+)",\)', source))
    named |= {*notices.ROPE_SCALING, *notices.FOR_DRY_RUN, *notices.FOR_LOAD}
    listed = {flag for flags, _ in rows_of("In some commands") for flag in FLAG.findall(flags)}
    assert len(named) >= 7 and named <= listed


def test_other_names_are_those_of_the_parser() -> None:
    flags = [flag for group in GROUPS for flag in declared_flags(group)]
    rows = {FLAG.findall(flag)[0]: meaning for flag, meaning in rows_of("Other names")}
    for flag in flags:
        for alias in flag.names[1:]:
            assert rows[alias] == f"`{flag.name}`"
    known = Counter(name for flag in flags for name in flag.names)
    listed = FLAG.findall("".join(SECTIONS[1:4]))
    assert not [flag for flag in listed if flag not in known]


@pytest.mark.parametrize("title", ["Environment variables"])
def test_variables_of_the_scripts_are_listed_and_not_read(title: str) -> None:
    listed = {name for names, _ in rows_of(title) for name in re.findall(r"`([A-Z_]+)`", names)}
    assert listed == {name for script in SCRIPTS.values() for name in script.environment}
    sources = [*ROOT.glob("mindspeed_llm/**/*.py"), *ROOT.glob("*.py")]
    read = re.compile(rf"(environ\[|get\(|getenv\()\"({'|'.join(listed)})\"(?!\] =)")
    assert not [path for path in sources if read.search(path.read_text("utf-8"))]
