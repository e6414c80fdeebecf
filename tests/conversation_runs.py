"""Random conversations through preprocess_data.py, held against conversation_reference.py; what differs is a fault."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from conversation_reference import PUBLISHED, Flags, reference
from preprocess_command import Command
from random_conversations import Drawn, Talks, as_alpaca, as_openai, as_sharegpt
from reference_tokenizer import PlainReference
from row_files import OPENAI_KEYS, cells_of, write_rows
from small_tokenizers import every_marker

from mindspeed_llm.chat import Conversation, Turn, iter_texts
from mindspeed_llm.tokenization import Tokenizer, load_tokenizer

SHAREGPT = ["--handler-name", "SharegptStyleInstructionHandler"]
FLAGS = {"alpaca": [], "sharegpt": SHAREGPT, "openai": [*SHAREGPT, "--map-keys", json.dumps(OPENAI_KEYS)]}
WRITERS = {"alpaca": as_alpaca, "sharegpt": as_sharegpt, "openai": as_openai}
FORMATS = (
    "alpaca jsonl",
    "alpaca csv",
    "alpaca parquet",
    "sharegpt jsonl.gz",
    "sharegpt parquet",
    "openai json",
    "openai arrow",
)
MODES = ("keep", "plain", "reject")
FIRST = Conversation([Turn("Hi", "Yo")])  # the first row, so that no set is without a sample
Sample = tuple[tuple[int, ...], tuple[int, ...]]


@dataclass
class Figures:
    """What became of the conversations of one kind."""

    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


@cache
def loaded(folder: Path) -> Tokenizer:
    """Each tokenizer once."""
    return load_tokenizer("PretrainedFromHF", str(folder))


class Run:
    """Conversations of one format under one template, with one tokenizer.

    Args:
        entry: of MindSpeed-LLM's templates, or of PUBLISHED.
    """

    def __init__(self, folder: Path, tokenizer: Path, entry: dict[str, Any], kind: str, mode: str) -> None:
        self._folder, self._entry, self._mode = folder, entry, mode
        self._format, self._kind = kind.split()
        usual = loaded(tokenizer)
        end = usual.token_id(entry["stop_words"][0]) if entry.get("replace_eos") else usual.eos_id
        assert end is not None
        self._end, self._usual = end, usual
        self._controls = re.compile("|".join(sorted(map(re.escape, every_marker()), key=len, reverse=True)))
        self._reference = PlainReference(tokenizer, usual, every_marker())
        self._flags = Flags()
        self._command = Command(folder, tokenizer)
        self._command.flags |= {"--prompt-type": entry["name"], "--seq-length": "100000"}
        self._name = f"{entry['name']}, {kind}, {mode}"

    def hold(self, count: int, seed: str, figures: Figures, cut: int | None) -> None:
        """Draw `count` conversations and compare them.

        Args:
            cut: run again with a --seq-length that the first one fits into with this many tokens left; None for no.
        """
        columnar = self._kind in ("parquet", "arrow", "csv")
        talks = Talks(seed, every_marker(), columnar)
        sound = Drawn(FIRST, marks=[None])
        drawn = [sound, *(self._fitting(talks.drawn(self._format != "alpaca")) for _ in range(count - 1))]
        rows = [WRITERS[self._format](one, talks.draw, columnar) for one in drawn]
        path = write_rows(self._folder, rows, self._kind)
        self._flags = self._drawn_flags(talks.draw)
        flags = [
            "--input",
            str(path),
            *FLAGS[self._format],
            "--control-tokens-in-text",
            self._mode,
            *self._flags.words(),
        ]
        wanted = [self._wanted(one) for one in drawn]
        expected = [one for one in wanted if one is not None]
        counts = self._command.run(*flags, without=("--pack", "--neat-pack")).counts
        samples = self._command.samples()
        differing = [pair for pair in zip(samples, expected, strict=False) if pair[0] != pair[1]]
        figures.counts.update(conversations=count, kept=counts.kept, listed=sum(counts.skipped.values()))
        if len(samples) != len(expected) or differing:
            figures.faults.append(
                f"{self._name}, {self._flags}, {seed}: {len(samples)} of {len(expected)}, {differing[:1]}"
            )
        rejected = [n for n, one in enumerate(wanted) if one is None]
        if self._listed(rows) != rejected:
            figures.faults.append(f"{self._name}, {seed}: other rows are listed than {rejected}")
        unanswered = sum(one.unanswered for one, kept in zip(drawn, wanted, strict=True) if kept is not None)
        marked = sum(self._is_marked(one.talk) for one in drawn if not one.bad)
        listed = self._command.folder / "out" / "set_control_tokens.jsonl"
        lines = listed.read_bytes().count(b"\n") if listed.exists() else 0
        if counts.unanswered_prompts != unanswered or counts.control_rows != marked:
            figures.faults.append(f"{self._name}, {seed}: counts {counts}, {unanswered} unanswered, {marked} marked")
        if lines != (marked if self._mode != "reject" else 0):
            figures.faults.append(f"{self._name}, {seed}: {lines} of {marked} rows with control tokens are listed")
        if cut is not None:
            self._hold_cut(
                flags,
                len(expected[0][0]) + cut,
                [(one.talk, kept) for one, kept in zip(drawn, wanted, strict=True)],
                rows,
                figures,
            )

    def _listed(self, rows: list[dict[str, Any]]) -> list[int]:
        """The numbers of the rows that the last run has rejected, as it lists them."""
        if not (self._command.folder / "out" / "set_rejected.jsonl").exists():
            return []
        listed = self._command.rejected()
        if self._kind != "csv":
            return [entry["line"] - 1 for entry in listed]
        found = []
        for number, row in enumerate(rows):  # the line of a cell is not that of its row
            entry = listed[len(found)]["row"] if len(found) < len(listed) else {}
            if all((entry.get(key) or "") == (cell or "") for key, cell in cells_of(row).items()):
                found.append(number)
        return found

    def _drawn_flags(self, draw: random.Random) -> Flags:
        thinking = draw.choice((None, True, False)) if self._entry["name"] == "qwen3" else None
        return Flags(draw.random() < 0.4, draw.random() < 0.2, thinking)

    def _fitting(self, drawn: Drawn) -> Drawn:
        """What the format can say."""
        if self._format == "alpaca":
            return replace(drawn, unanswered=False)
        if self._format == "openai" and self._kind == "arrow":  # a column of lists
            drawn = replace(drawn, talk=replace(drawn.talk, no_tools=False))
        if self._format == "sharegpt":  # a call has no text beside it
            turns = [replace(turn, answer="") if turn.calls else turn for turn in drawn.talk.turns]
            return replace(drawn, talk=replace(drawn.talk, turns=turns))
        return drawn

    def _is_marked(self, talk: Conversation) -> bool:
        return any(self._controls.search(text) for _, text in iter_texts(talk))

    def _wanted(self, drawn: Drawn) -> Sample | None:
        if drawn.bad or (self._mode == "reject" and self._is_marked(drawn.talk)):
            return None
        return self._sample(drawn.talk)

    def _sample(self, talk: Conversation) -> Sample | None:
        told = self._reference.fenced(talk) if self._mode == "plain" else talk
        found = reference(self._entry, told, self._reference, self._end, self._flags)
        return None if found is None else (tuple(found[0]), tuple(found[1]))

    def _hold_cut(
        self,
        flags: list[str],
        length: int,
        drawn: list[tuple[Conversation, Sample | None]],
        rows: list[dict[str, Any]],
        figures: Figures,
    ) -> None:
        """With a short --seq-length: what is trained is a part of the answers, and every change is counted."""
        counts = self._command.run(*flags, "--seq-length", str(length), without=("--pack", "--neat-pack")).counts
        samples, listed, changed = self._command.samples(), set(self._listed(rows)), 0
        kept = [pair for number, pair in enumerate(drawn) if number not in listed]
        if len(samples) != len(kept) or counts.kept != len(kept):
            figures.faults.append(f"{self._name}: {len(samples)} samples, {len(kept)} rows are not listed, {counts}")
            return
        for (talk, whole), (ids, labels) in zip(kept, samples, strict=True):
            if (ids, labels) == whole:
                continue
            changed += 1
            odd = [n for n, label in enumerate(labels) if label not in (-100, ids[n], self._end)]
            if odd or len(ids) > length or whole is None or len(whole[0]) <= length or not self._is_part(talk, labels):
                figures.faults.append(f"{self._name}: of {talk} {self._usual.decode(ids)!r} is left, {labels}")
        figures.counts.update(cut=counts.truncated)
        if changed != counts.truncated:
            figures.faults.append(f"{self._name}: {changed} samples are cut, {counts}")

    def _is_part(self, talk: Conversation, labels: tuple[int, ...]) -> bool:
        """Whether what is trained is what the answers of the last turns have, but for its end."""
        trained = [label for label in labels if label != -100]
        for first in range(len(talk.turns)):
            sample = self._sample(replace(talk, turns=talk.turns[first:]))
            if sample is not None and [n for n in sample[1] if n != -100][: len(trained)] == trained:
                return True
        return False


def entries_of(shared: Path) -> list[dict[str, Any]]:
    """MindSpeed-LLM's templates, and those that are published elsewhere."""
    entries = json.loads((shared / "data" / "mindspeed_templates.json").read_text(encoding="utf-8"))
    published = [{"name": name, "stop_words": ["<|im_end|>"], "replace_eos": True} for name in PUBLISHED]
    return [*entries, *published]
