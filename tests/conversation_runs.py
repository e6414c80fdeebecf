"""Compare preprocess_data.py with conversation_reference.py on random conversations and collect the differences."""

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
from random_conversations import ConversationGenerator, GeneratedConversation, as_alpaca, as_openai, as_sharegpt
from reference_tokenizer import PlainReference
from row_files import OPENAI_KEYS, cells_of, write_rows
from small_tokenizers import all_control_tokens

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
FIRST = Conversation([Turn("Hi", "Yo")])  # the first row, so that no data set is empty
Sample = tuple[tuple[int, ...], tuple[int, ...]]


@dataclass
class Figures:
    """Counts and differences of all conversations of one kind."""

    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


@cache
def loaded(folder: Path) -> Tokenizer:
    """Load each tokenizer once."""
    return load_tokenizer("PretrainedFromHF", str(folder))


class Run:
    """Conversations of one format under one template, with one tokenizer.

    Args:
        entry: template entry of MindSpeed-LLM or of PUBLISHED.
    """

    def __init__(self, folder: Path, tokenizer: Path, entry: dict[str, Any], kind: str, mode: str) -> None:
        self._folder, self._entry, self._mode = folder, entry, mode
        self._format, self._kind = kind.split()
        usual = loaded(tokenizer)
        end = usual.token_id(entry["stop_words"][0]) if entry.get("replace_eos") else usual.eos_id
        assert end is not None
        self._end, self._usual = end, usual
        self._controls = re.compile("|".join(sorted(map(re.escape, all_control_tokens()), key=len, reverse=True)))
        self._reference = PlainReference(tokenizer, usual, all_control_tokens())
        self._flags = Flags()
        self._command = Command(folder, tokenizer)
        self._command.flags |= {"--prompt-type": entry["name"], "--seq-length": "100000"}
        self._name = f"{entry['name']}, {kind}, {mode}"

    def compare(self, count: int, seed: str, figures: Figures, cut: int | None) -> None:
        """Draw `count` conversations, preprocess them and compare them with the reference.

        Args:
            cut: if given, run again with --seq-length = length of the first sample + `cut`, to truncate longer samples.
        """
        columnar = self._kind in ("parquet", "arrow", "csv")
        generator = ConversationGenerator(seed, all_control_tokens(), columnar)
        first = GeneratedConversation(FIRST, marks=[None])
        drawn = [first, *(self._fitting(generator.generate(self._format != "alpaca")) for _ in range(count - 1))]
        rows = [WRITERS[self._format](one, generator.draw, columnar) for one in drawn]
        path = write_rows(self._folder, rows, self._kind)
        self._flags = self._drawn_flags(generator.draw)
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
        marked = sum(self._is_marked(one.conversation) for one in drawn if not one.bad)
        listed = self._command.folder / "out" / "set_control_tokens.jsonl"
        lines = listed.read_bytes().count(b"\n") if listed.exists() else 0
        if counts.unanswered_prompts != unanswered or counts.control_rows != marked:
            figures.faults.append(f"{self._name}, {seed}: counts {counts}, {unanswered} unanswered, {marked} marked")
        if lines != (marked if self._mode != "reject" else 0):
            figures.faults.append(f"{self._name}, {seed}: {lines} of {marked} rows with control tokens are listed")
        if cut is not None:
            self._compare_cut(
                flags,
                len(expected[0][0]) + cut,
                [(one.conversation, kept) for one, kept in zip(drawn, wanted, strict=True)],
                rows,
                figures,
            )

    def _listed(self, rows: list[dict[str, Any]]) -> list[int]:
        """Return the indices of the rows in the list of rejected rows of the last run."""
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
        flags = Flags(draw.random() < 0.4, draw.random() < 0.2)
        if self._entry["name"] != "qwen3":
            return flags
        thinking = draw.choice((None, True, False))
        history = draw.choice((None, "drop", "template", *(["keep"] if thinking is not False else [])))
        return flags._replace(
            enable_thinking=thinking, reasoning_history=history, train_empty_reasoning=draw.random() < 0.3
        )

    def _fitting(self, drawn: GeneratedConversation) -> GeneratedConversation:
        """Remove features that the format cannot represent."""
        if self._format == "alpaca":
            return replace(drawn, unanswered=False)
        if self._format == "openai" and self._kind == "arrow":  # a column of lists
            drawn = replace(drawn, conversation=replace(drawn.conversation, no_tools=False))
        if self._format == "sharegpt":  # a call has no text beside it
            turns = [replace(turn, answer="") if turn.calls else turn for turn in drawn.conversation.turns]
            return replace(drawn, conversation=replace(drawn.conversation, turns=turns))
        return drawn

    def _is_marked(self, conversation: Conversation) -> bool:
        return any(self._controls.search(text) for _, text in iter_texts(conversation))

    def _wanted(self, drawn: GeneratedConversation) -> Sample | None:
        if drawn.bad or (self._mode == "reject" and self._is_marked(drawn.conversation)):
            return None
        return self._sample(drawn.conversation)

    def _sample(self, conversation: Conversation) -> Sample | None:
        source = self._reference.fenced(conversation) if self._mode == "plain" else conversation
        found = reference(self._entry, source, self._reference, self._end, self._flags)
        return None if found is None else (tuple(found[0]), tuple(found[1]))

    def _compare_cut(
        self,
        flags: list[str],
        length: int,
        drawn: list[tuple[Conversation, Sample | None]],
        rows: list[dict[str, Any]],
        figures: Figures,
    ) -> None:
        """Check a run with a short --seq-length: the trained text is part of the answers, and all cuts are counted."""
        counts = self._command.run(*flags, "--seq-length", str(length), without=("--pack", "--neat-pack")).counts
        samples, listed, changed = self._command.samples(), set(self._listed(rows)), 0
        kept = [pair for number, pair in enumerate(drawn) if number not in listed]
        if len(samples) != len(kept) or counts.kept != len(kept):
            figures.faults.append(f"{self._name}: {len(samples)} samples, {len(kept)} rows are not listed, {counts}")
            return
        for (conversation, whole), (ids, labels) in zip(kept, samples, strict=True):
            if (ids, labels) == whole:
                continue
            changed += 1
            odd = [n for n, label in enumerate(labels) if label not in (-100, ids[n], self._end)]
            if (
                odd
                or len(ids) > length
                or whole is None
                or len(whole[0]) <= length
                or not self._is_part(conversation, labels)
            ):
                figures.faults.append(f"{self._name}: of {conversation} {self._usual.decode(ids)!r} is left, {labels}")
        figures.counts.update(cut=counts.truncated)
        if changed != counts.truncated:
            figures.faults.append(f"{self._name}: {changed} samples are cut, {counts}")

    def _is_part(self, conversation: Conversation, labels: tuple[int, ...]) -> bool:
        """Return whether the trained tokens are a prefix of the answers of the last turns."""
        trained = [label for label in labels if label != -100]
        for first in range(len(conversation.turns)):
            sample = self._sample(replace(conversation, turns=conversation.turns[first:]))
            if sample is not None and [n for n in sample[1] if n != -100][: len(trained)] == trained:
                return True
        return False


def entries_of(shared: Path) -> list[dict[str, Any]]:
    """Return the template entries of MindSpeed-LLM and those of PUBLISHED."""
    entries = json.loads((shared / "data" / "mindspeed_templates.json").read_text(encoding="utf-8"))
    published = [{"name": name, "stop_words": ["<|im_end|>"], "replace_eos": True} for name in PUBLISHED]
    return [*entries, *published]
