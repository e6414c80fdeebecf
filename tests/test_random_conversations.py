"""Random conversations of every format under every template: what is trained, and what is listed.

Every label is -100 or the id itself (or the end token, where a template has one for all answers), every trained
character belongs to an answer or to what ends it, and nothing of an answer is lost without being listed or counted:
all of it follows from samples that are those of an independent rendering. `Figures.faults` has what differs.
"""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from conversation_runs import FORMATS, MODES, Figures, Run, entries_of, loaded
from small_tokenizers import all_control_tokens, byte_level_folder, sentence_piece_folder

from mindspeed_llm.preprocessing import inputs

TEMPLATES = 28
GROUPS = {
    "ChatML": ("chatml", "chatml_de", "intern2", "qwen", "qwen_math_r1", "qwen_r1"),
    "published Qwen": ("qwen2.5", "qwen3"),
    "one end for all answers": ("baichuan2", "chatglm2", "chatglm3", "chatglm3_system", "gemma", "glm4"),
}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of small sets are written: no file waits for the disk, and no tokenizer is read twice."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(inputs, "load_tokenizer", lambda kind, path, model, **_: loaded(Path(path)))


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    base, markers = tmp_path_factory.mktemp("tokenizers"), all_control_tokens()
    return [
        byte_level_folder(base / "bpe", "</s>", markers, bos="<s>", normalized=True),
        sentence_piece_folder(base / "pieces", markers[2:], legacy=True),
    ]


def group_of(name: str) -> str:
    return next((group for group, names in GROUPS.items() if name in names), "other")


def test_a_few_hundred_conversations(shared: Path, tmp_path: Path, tokenizers: list[Path]) -> None:
    entries, figures = entries_of(shared), Figures()
    assert len(entries) == TEMPLATES
    for number, entry in enumerate(entries):
        kind, mode = FORMATS[number % len(FORMATS)], MODES[number % len(MODES)]
        Run(tmp_path, tokenizers[0], entry, kind, mode).compare(12, f"short {entry['name']}", figures, cut=None)
    assert not figures.faults, figures.faults[0]
    assert figures.counts["kept"] > 200 and figures.counts["listed"] > 20


def test_the_comparison_can_fail(shared: Path, tmp_path: Path, tokenizers: list[Path]) -> None:
    """A template with one field changed is found out."""
    (entry,) = [entry for entry in entries_of(shared) if entry["name"] == "chatml"]
    for change in ({"format_separator": {"slots": [" "]}}, {"format_assistant": {"slots": ["{{content}}"]}}):
        figures = Figures()
        Run(tmp_path, tokenizers[0], entry | change, "openai json", "keep").compare(12, "other", figures, cut=None)
        assert figures.faults


@pytest.mark.long
def test_twenty_thousand_conversations(
    shared: Path, tmp_path: Path, tokenizers: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    found: dict[tuple[str, str], Figures] = {}
    modes = itertools.cycle(MODES)
    for entry, kind, tokenizer in itertools.product(entries_of(shared), FORMATS, tokenizers):
        figures = found.setdefault((kind, group_of(entry["name"])), Figures())
        run = Run(tmp_path, tokenizer, entry, kind, next(modes))
        run.compare(52, f"{entry['name']} {kind} {tokenizer.name}", figures, cut=120)
    with capsys.disabled():
        print("\n" + "\n".join(table(found)))
    assert sum(figures.counts["conversations"] for figures in found.values()) > 20_000
    faults = [fault for figures in found.values() for fault in figures.faults]
    assert not faults, "\n".join([f"{len(faults)} faults", *faults[:5]])


def table(found: dict[tuple[str, str], Figures]) -> Iterator[str]:
    """A line for each format and group of templates."""
    row = partial("{:18}{:26}{:>14}{:>8}{:>8}{:>12}{:>8}".format)
    yield row("format", "templates", "conversations", "kept", "listed", "cut short", "faults")
    total: Counter[str] = Counter()
    for (kind, group), figures in found.items():
        counts = figures.counts + Counter(faults=len(figures.faults))
        total += counts
        yield row(kind, group, *(f"{counts[name]:,}" for name in ("conversations", "kept", "listed", "cut", "faults")))
    yield row("all", "", *(f"{total[name]:,}" for name in ("conversations", "kept", "listed", "cut", "faults")))
