"""Flags of preprocess_data.py beyond the main job: mixing, bad rows, masks, plain text, padding inside packs."""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from preprocess_command import Command, rows
from small_tokenizers import byte_level_folder, sentence_piece_folder

from mindspeed_llm.arguments.preprocess_arguments import parse_preprocess_arguments
from mindspeed_llm.data import DataLoaderSettings, PackedDataLoader, PackedDataset
from mindspeed_llm.data.packed_dataset import DatasetShare
from mindspeed_llm.errors import DataError
from mindspeed_llm.indexed_dataset import PackedFiles
from mindspeed_llm.pack_viewer.manifest_summary import manifest_rows
from mindspeed_llm.pack_viewer.pack_view import view_pack
from mindspeed_llm.preprocessing import sample_reader
from mindspeed_llm.rawdata import ReadPosition, find_input_files, interleave_rows
from mindspeed_llm.reports.packing_plot import compute_packing_statistics
from mindspeed_llm.tokenization import load_tokenizer

TEXT, ALPACA_TEXT = "GeneralPretrainHandler", "AlpacaPretrainHandler"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return byte_level_folder(tmp_path_factory.mktemp("byte-level"))


@pytest.fixture
def command(tmp_path: Path, tokenizer: Path) -> Command:
    return Command(tmp_path, tokenizer, rows(60))


def test_every_flag_that_users_know_is_accepted(shared: Path) -> None:
    section = (shared / "facts" / "flags.md").read_text(encoding="utf-8").split("## data_convert")[0]
    known = set(re.findall(r"--[a-z][a-z-]+", section))
    assert len(known) > 25 and "--n-subs" in known
    values = {
        "--input": "x", "--handler-name": "AlpacaStyleInstructionHandler", "--tokenizer-name-or-path": "x",
        "--output-prefix": "x", "--prompt-type": "qwen", "--seq-length": "64", "--pack": None, "--neat-pack": None,
        "--tokenizer-type": "PretrainedFromHF", "--tokenizer-model": "x", "--tokenizer-not-use-fast": None,
        "--workers": "4", "--log-interval": "1000", "--prompt-type-path": "x", "--map-keys": "{}", "--append-eod": None,
        "--overwrite-cache": None, "--cache-dir": "x", "--json-keys": "text", "--n-subs": "2", "--max-samples": "5",
        "--seed": "1", "--mix-strategy": "interleave_over", "--interleave-probs": "1.0", "--pad-to-multiple-of": "8",
        "--enable-thinking": "false", "--dataset-impl": "mmap", "--merge-group-keys": "packed_labels_document",
    }  # fmt: skip
    assert known == set(values)
    words = [word for name, value in values.items() for word in (name, value) if word is not None]
    assert parse_preprocess_arguments(words).run.n_subs == 2


def expected_mixture(sizes: list[int], strategy: str, shares: list[float] | None, seed: int) -> list[tuple[int, int]]:
    """(data set, row) of every row, from the lengths alone, as datasets.interleave_datasets has it."""
    if strategy == "concat":
        return [(one, row) for one, size in enumerate(sizes) for row in range(size)]
    over = strategy == "interleave_over"
    if shares is None:
        rounds = max(sizes) if over else min(sizes)
        return [(one, number % size) for number in range(rounds) for one, size in enumerate(sizes)]
    random = np.random.default_rng(seed)
    draws = chain.from_iterable(iter(lambda: random.choice(len(sizes), size=1000, p=shares).tolist(), None))
    taken, done, found = [0] * len(sizes), [False] * len(sizes), []
    for one in draws:
        if all(done) if over else any(done):
            break
        found.append((one, taken[one] % sizes[one]))
        taken[one] += 1
        done[one] |= taken[one] >= sizes[one]
    return found


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=3),
    st.sampled_from(["concat", "interleave_under", "interleave_over"]),
    st.booleans(),
    st.integers(0, 99),
    st.none() | st.integers(1, 4),
)
def test_mixtures(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], strategy: str, drawn: bool, seed: int, most: int | None
) -> None:
    folder = tmp_path_factory.mktemp("mix")
    paths = [folder / f"{number}.jsonl" for number in range(len(sizes))]
    for number, (path, size) in enumerate(zip(paths, sizes, strict=True)):
        path.write_text("".join(f"[{number}, {row}]\n" for row in range(size)))
    sources = find_input_files([str(path) for path in paths])
    shares = [1 / len(sizes)] * len(sizes) if drawn and strategy != "concat" else None
    position = ReadPosition()
    found = [tuple(row.value) for row in interleave_rows(sources, strategy, shares, seed, most, position)]
    read = [min(size, most or size) for size in sizes]
    wanted = expected_mixture(read, strategy, shares, seed) if len(sizes) > 1 else [(0, row) for row in range(read[0])]
    assert found == wanted
    assert position.bytes_read <= sum(path.stat().st_size for path in paths)


def test_several_inputs(command: Command) -> None:
    other = command.folder / "other.jsonl"
    other.write_text("".join(json.dumps({"instruction": "Count.", "output": "one two"}) + "\n" for _ in range(5)))
    both = ["--input", str(command.input), "--input", str(other)]
    assert command.run(*both).samples == 65
    assert command.run(*both, "--max-samples", "4").samples == 8, "of each"
    assert command.run(*both, "--mix-strategy", "interleave_under").samples == 10
    manifest = command.run(*both, "--mix-strategy", "interleave_over", "--interleave-probs", "0.2,0.8")
    assert manifest.samples > 65 and [source.name for source in manifest.sources] == ["rows.json", "other.jsonl"]
    assert manifest.counts.rows_read == manifest.counts.kept == manifest.samples


def test_bad_rows_are_bounded(command: Command) -> None:
    data = rows(6)
    data[2] = {"instruction": "x"}
    data[4] = {"output": "x"}
    command.input.write_text("\n".join(json.dumps(row) for row in data))
    with pytest.raises(DataError, match=r"rows\.json:3: answer is missing; correct the row, or leave --strict out"):
        command.run("--strict")
    with pytest.raises(
        DataError, match=r"rows\.json:5: instruction is missing; this is bad row 2, --max-bad-rows allows 1"
    ):
        command.run("--max-bad-rows", "1")
    assert not command.prefix.parent.exists()
    assert sum(command.run("--max-bad-rows", "2").counts.skipped.values()) == 2
    data[2] = data[4] = {"instruction": "x", "output": "word " * 999}
    command.input.write_text("\n".join(json.dumps(row) for row in data))
    manifest = command.run("--strict", "--overlong", "drop")
    assert manifest.counts.dropped == 2, "dropped as asked: not bad rows"


@pytest.mark.usefixtures("small_blocks")
def test_the_first_of_two_errors_is_reported_for_any_number_of_workers(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample_reader, "ROWS_AT_ONCE", 2)
    lines = [json.dumps({"instruction": "Say.", "output": f"Word {n}."}) for n in range(20)]
    lines[6] = json.dumps({"instruction": "Say."})
    lines[9] = "{broken"
    command.input.write_text("[\n" + ",\n".join(lines) + "\n]")
    for workers in ("1", "3"):
        with pytest.raises(DataError, match=r"rows\.json:8: answer is missing"):
            command.run("--strict", "--workers", workers)
        with pytest.raises(DataError, match=r"rows\.json:11: bad JSON"):
            command.run("--workers", workers)


def test_a_broken_line_is_a_bad_row(command: Command) -> None:
    path = command.folder / "rows.jsonl"
    lines = [json.dumps(row) for row in rows(4)]
    path.write_bytes("\n".join([lines[0], lines[1][:-4], lines[2], ""]).encode() + b'{"instruction": "\xff"}\n')
    given = ["--input", str(path)]
    counts = command.run(*given).counts
    assert counts.rows_read == 4 and counts.kept == 2 and counts.skipped == {"broken JSON": 1, "not UTF-8": 1}
    first, second = command.rejected()
    assert first == {"file": str(path), "line": 2, "reason": "broken JSON", "row": lines[1][:-4]}
    assert (second["line"], second["reason"]) == (4, "not UTF-8")
    with pytest.raises(DataError, match=r"rows\.jsonl:2: broken JSON; correct the row, or leave --strict out"):
        command.run(*given, "--strict")
    with pytest.raises(DataError, match=r"rows\.jsonl:4: not UTF-8; this is bad row 2"):
        command.run(*given, "--max-bad-rows", "1")
    path.write_text("".join(json.dumps(row, indent=1) + "\n" for row in rows(4)))
    with pytest.raises(DataError, match=r"broken JSON: \d+\).*a value over several lines needs a \.json"):
        command.run(*given)
    array = command.folder / "array.json"
    array.write_text("[" + ",\n".join(lines)[:-4])
    with pytest.raises(DataError, match=r"array\.json:4: bad JSON: .*correct the file"):
        command.run("--input", str(array))


def test_unanswered_prompts_are_counted(command: Command) -> None:
    conversation = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}, {"from": "human", "value": "c"}]
    command.input.write_text(json.dumps([{"conversations": conversation}, {"conversations": conversation[:2]}]))
    counts = command.run("--handler-name", "SharegptStyleInstructionHandler").counts
    assert counts.kept == 2 and counts.unanswered_prompts == 1
    first, second = command.samples()
    assert first == second


def test_masks(command: Command) -> None:
    data = [{"instruction": "a", "output": "b", "history": [["c", "d"], ["e", "f"]]}]
    command.input.write_text(json.dumps(data))
    command.run()
    ((ids, labels),) = command.samples()
    command.run("--mask-history")
    ((same, last),) = command.samples()
    kept = [place for place, label in enumerate(last) if label != -100]
    assert same == ids and [last[place] for place in kept] == [labels[place] for place in kept]
    trained = [place for place, label in enumerate(labels) if label != -100]
    assert kept == trained[-2:] and len(trained) == 6, "each answer is a letter and its end"
    assert command.run("--train-on-prompt").trained_tokens == len(ids)
    assert command.samples()[0] == (ids, ids)


def test_plain_text(command: Command) -> None:
    texts = ["The old harbour.", "Two towns.\nAnd the way between them.", "x" * 700]
    command.input.write_text("\n".join(json.dumps({"text": text, "n": 1}) for text in texts))
    tokenizer = load_tokenizer("PretrainedFromHF", command.flags["--tokenizer-name-or-path"])
    flags = ["--handler-name", TEXT, "--append-eod"]
    without = ("--prompt-type", "--pack", "--neat-pack", "--seq-length")
    manifest = command.run(*flags, without=without)
    wanted = [(*encoded.tolist(), tokenizer.eos_id) for encoded in tokenizer.encode_batch(texts)]
    assert command.samples() == [(ids, ids) for ids in wanted] and manifest.template is None
    assert manifest.trained_tokens == manifest.tokens and not manifest.eod_inside_sample

    manifest = command.run(*flags, without=("--prompt-type", "--neat-pack"))
    assert manifest.samples == 5 and manifest.counts.kept == 3 and manifest.counts.truncated == 1
    files = PackedFiles.open(command.prefix)
    ids = np.concatenate([files.input_ids[n][files.attention_mask[n] > 0] for n in range(len(files))])
    assert Counter(ids.tolist()) == Counter(chain.from_iterable(wanted)), "divided, nothing lost"
    command.input.write_text(json.dumps({"body": "text"}))
    assert command.run(*flags, "--json-keys", "body", without=without).samples == 1
    assert command.run(*flags, "--map-keys", '{"text": "body"}', without=without).samples == 1
    assert command.status(*flags, without=without) == 2


def test_plain_text_begins_as_the_tokenizer_has_it(tmp_path: Path) -> None:
    command = Command(tmp_path, sentence_piece_folder(tmp_path / "tokenizer"), [])
    command.input.write_text(json.dumps({"text": "The harbour."}))
    for added, first in ((True, 1), (None, 1), (False, None)):
        path = tmp_path / "tokenizer" / "tokenizer_config.json"
        settings = {**json.loads(path.read_text()), "add_bos_token": added}
        path.write_text(json.dumps({key: value for key, value in settings.items() if value is not None}))
        command.run("--handler-name", TEXT, without=("--prompt-type", "--pack", "--neat-pack"))
        ((ids, labels),) = command.samples()
        assert (ids[0] == 1) == (first == 1) and labels == ids


def test_alpaca_as_plain_text(command: Command) -> None:
    command.input.write_text(json.dumps([{"instruction": "Add.", "input": "1 2", "output": "3"}]))
    command.run("--handler-name", ALPACA_TEXT, without=("--prompt-type", "--pack", "--neat-pack", "--seq-length"))
    tokenizer = load_tokenizer("PretrainedFromHF", command.flags["--tokenizer-name-or-path"])
    text = tokenizer.decode(list(command.samples()[0][0]))
    assert text.startswith("A chat between a curious user")
    assert text.endswith("### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response: ASSISTANT: 3")


def test_padding_inside_packs_changes_no_attention_and_no_loss(command: Command) -> None:
    data = rows(12)
    command.input.write_text(json.dumps(data))
    command.run()
    wanted = Counter(command.samples())
    manifest = command.run("--pad-to-multiple-of", "16")
    assert manifest.pad_to_multiple_of == 16 and manifest.samples == 12
    files = PackedFiles.open(command.prefix)
    pad, found = manifest.tokenizer.pad_id, Counter()
    for number in range(len(files)):
        ids, mask, labels = files.input_ids[number], files.attention_mask[number], files.labels[number]
        for sample in range(1, int(mask.max()) + 1):
            slot = np.flatnonzero(mask == sample)
            assert slot[0] % 16 == 0 and len(slot) % 16 == 0, "each slot begins and ends at a multiple"
            tokens = int(np.flatnonzero(ids[slot] != pad)[-1]) + 1
            assert len(slot) - tokens < 16 and (labels[slot][tokens:] == -100).all()
            found[(tuple(ids[slot][:tokens].tolist()), tuple(labels[slot][:tokens].tolist()))] += 1
    assert found == wanted and manifest.tokens == sum(len(ids) for ids, _ in wanted.elements())

    dataset = PackedDataset([DatasetShare(files, np.arange(len(files)))], packed=True, neat=True)
    how = DataLoaderSettings(seq_length=256, micro_batch_size=len(files), global_batch_size=len(files))
    batch = PackedDataLoader(dataset, dataset.order(1, shuffle=False), how).batch_of(np.arange(len(files)))
    assert batch.trained_tokens == manifest.trained_tokens == batch.loss_denominator
    assert batch.tokens_count == manifest.tokens < batch.slots, "padding behind a sample is no token either"
    middle = DataLoaderSettings(**{**vars(how), "needs_tokens": False, "needs_labels": False})
    stage = PackedDataLoader(dataset, dataset.order(1, shuffle=False), middle).batch_of(np.arange(len(files)))
    assert stage.tokens_count == manifest.tokens, "the same on a stage that needs neither tokens nor labels"
    assert batch.samples == 12 and all(end % 16 == 0 for end in batch.actual_seq_len)
    assert batch.positions is not None and batch.loss_weights is not None and batch.tokens is not None
    starts = [0, *batch.actual_seq_len[:-1]]
    weights, ids = batch.loss_weights.numpy()[0], batch.tokens.numpy()[0]
    for start, end in zip(starts, batch.actual_seq_len, strict=True):
        assert batch.positions[start:end].tolist() == list(range(end - start)), "a sample is whole in one segment"
        tokens = np.flatnonzero(ids[start:end] != pad)
        last = int(tokens[-1]) if len(tokens) else 0
        assert (weights[start + last : end] == 0).all(), "neither the last token nor padding predicts anything"


def test_virtual_tokens_are_reserved_at_the_beginning_of_every_sample(command: Command) -> None:
    """Samples are those of a shorter --seq-length; the reserved slots are not trained and not counted as tokens."""
    data = rows(12)
    data[0]["output"] = "long " * 400
    command.input.write_text(json.dumps(data))
    plain = command.run("--seq-length", "246")
    wanted = Counter(command.samples())
    manifest = command.run("--virtual-tokens", "10")
    assert plain.counts.truncated == manifest.counts.truncated == 1
    assert (manifest.virtual_tokens, manifest.tokens, manifest.samples) == (10, plain.tokens, 12)
    assert manifest.fill == manifest.tokens / (manifest.packs * 256)
    assert manifest.virtual_share == 120 / (manifest.packs * 256)
    shown = dict(manifest_rows(manifest))["virtual tokens"]
    share = f"({100 * manifest.virtual_share:.2f} % of all)"
    assert shown == f"10 slots at the beginning of each sample, 120 slots {share}, not filled"
    files, found = PackedFiles.open(command.prefix), Counter()
    for number in range(len(files)):
        ids, mask, labels = files.input_ids[number], files.attention_mask[number], files.labels[number]
        for sample in range(1, int(mask.max()) + 1):
            slot = np.flatnonzero(mask == sample)
            assert (labels[slot[:10]] == -100).all() and (ids[slot[:10]] == manifest.tokenizer.pad_id).all()
            found[(tuple(ids[slot[10:]].tolist()), tuple(labels[slot[10:]].tolist()))] += 1
        view = view_pack(files, number, None)
        assert view.virtual_tokens == 10 * len(view.samples) and view.samples[0].start == 10
        assert view.tokens + view.virtual_tokens + view.padding == 256
    assert found == wanted
    padded = command.run("--virtual-tokens", "10", "--pad-to-multiple-of", "16")
    mask = PackedFiles.open(command.prefix).attention_mask[0]
    assert padded.tokens == plain.tokens and all(
        int((mask == n).sum()) % 16 == 0 for n in range(1, int(mask.max()) + 1)
    )


@pytest.mark.parametrize("kind", ["pad token of its own", "end token as padding"])
def test_padding_inside_packs_is_counted_as_padding(tmp_path: Path, tokenizer: Path, kind: str) -> None:
    """Also where padding looks like the end token of the sample before it."""
    folder = tokenizer if kind.startswith("pad") else sentence_piece_folder(tmp_path / "tokenizer")
    command = Command(tmp_path, folder, rows(40))
    flags = ["--append-eod", "--prompt-type", "qwen" if folder == tokenizer else "llama2"]
    plain = command.run(*flags)
    padded = command.run(*flags, "--pad-to-multiple-of", "32")
    assert (padded.tokenizer.pad_id == padded.tokenizer.eod_id) == (folder != tokenizer)
    assert (padded.tokens, padded.trained_tokens) == (plain.tokens, plain.trained_tokens)
    assert padded.fill == plain.tokens / (padded.packs * 256) and padded.histograms.sample_length
    files, found = PackedFiles.open(command.prefix), Counter()
    for number in range(len(files)):
        mask = files.attention_mask[number]
        slots = [int((mask == sample).sum()) for sample in range(1, int(mask.max()) + 1)]
        behind = files.slot_padding(number).tolist()
        assert len(slots) == len(behind) and all(0 <= size < 32 for size in behind)
        found.update(slot - size for slot, size in zip(slots, behind, strict=True))
    assert [list(pair) for pair in sorted(found.items())] == plain.histograms.sample_length
    figures, table = compute_packing_statistics(padded), dict(manifest_rows(padded))
    assert figures.fill == padded.fill and figures.padded_fill == plain.tokens / (40 * 256)
    assert table["tokens"] == f"{plain.tokens:,}" and f"{100 * padded.fill:.2f} % filled" in table["packs"]


ROLES = ["human", "gpt", "observation", "function_call", "system", "x"]


@settings(deadline=None, max_examples=30)
@given(st.lists(st.sampled_from(ROLES), max_size=5), st.text(max_size=4))
def test_any_roles_are_kept_or_counted(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: Path, roles: list[str], value: str
) -> None:
    row = {"conversations": [{"from": role, "value": value} for role in roles]}
    command = Command(tmp_path_factory.mktemp("roles"), tokenizer)
    command.input.write_text(
        "\n".join(json.dumps(one) for one in (row, {"conversations": None}, row))
        + "\n"
        + json.dumps({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]})
    )
    counts = command.run("--handler-name", "SharegptStyleInstructionHandler").counts
    assert counts.rows_read == 4 == counts.kept + sum(counts.skipped.values()) and counts.kept in (1, 3)
