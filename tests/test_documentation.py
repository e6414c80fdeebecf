"""The documentation names flags, files and pages that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mindspeed_llm.arguments import convert_arguments, inspect_arguments, preprocess_arguments, pretrain_arguments
from mindspeed_llm.arguments.dataclass_parser import declared_flags
from mindspeed_llm.arguments.raw_data_arguments import RawDataArguments
from mindspeed_llm.verify.verify_arguments import VerifyArguments

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
FLAGS = {
    name
    for group in (
        *pretrain_arguments.GROUPS,
        *preprocess_arguments.GROUPS,
        RawDataArguments,
        convert_arguments.ConvertArguments,
        inspect_arguments.InspectArguments,
        inspect_arguments.DecodingArguments,
        VerifyArguments,
    )
    for flag in declared_flags(group)
    for name in flag.names
} | {"--nproc_per_node"}
# Column of the table in which a page has the flags of this project.
OWN_COLUMN = {"coming-from-llama-factory.md": -1, "coming-from-trl.md": -1, "troubleshooting.md": -1}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_files_exist(page: Path) -> None:
    text = page.read_text("utf-8")
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if not re.match(r"\w+:", link)]
    files = re.findall(r"`((?:tests|ci|docs|benchmarks|examples)/[\w./-]+\.\w+)`", text)
    missing = [link for link in links if link and not (page.parent / link).exists()]
    assert missing + [name for name in files if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", OWN_COLUMN)
def test_flags_of_this_project_exist(page: str) -> None:
    rows = [line.strip().strip("|").split("|") for line in (ROOT / "docs" / page).read_text("utf-8").splitlines()
            if line.startswith("| ")]  # fmt: skip
    named = {flag for row in rows for flag in re.findall(r"--[a-z][\w-]*", row[OWN_COLUMN[page]])}
    assert len(named) > 8 and named <= FLAGS, sorted(named - FLAGS)
