"""Blocks of documents: against an independent concatenation in numpy and against Megatron's GPTDataset."""

from __future__ import annotations

import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
from document_files import EOD, concatenated, random_documents, write_documents, write_plain
from tiny import VOCABULARY

from mindspeed_llm.arguments.data_arguments import DataArguments
from mindspeed_llm.boundaries import segment_lengths
from mindspeed_llm.data import BlockDataLoader, BlockDataset, DataLoaderSettings, build_datasets, document_stream
from mindspeed_llm.data.seeded_hash import IndexPermutation
from mindspeed_llm.errors import ConfigError, DataError
from mindspeed_llm.indexed_dataset.idx_header import HEAD, MAGIC
from mindspeed_llm.manifest import document_manifest_path

S = 16


def datasets_of(*path: str, split: str | None = "100,0,0", seed: int = 3, s: int = S, evaluate: bool = False, **flags):
    data = DataArguments(seq_length=s, data_path=list(path), split=split, **flags)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return build_datasets(data, seed, evaluate)


def blocks_of(dataset: BlockDataset) -> np.ndarray:
    """Return all blocks in the order of their numbers; int64 [blocks, S + 1]."""
    return np.stack([dataset[number].read().tokens for number in range(len(dataset))])


def numpy_blocks(stream: np.ndarray, s: int = S) -> np.ndarray:
    """Return the blocks of a stream, each with the first token of the next; int64 [blocks, s + 1]."""
    return np.stack([stream[start : start + s + 1] for start in range(0, len(stream) - s, s)])


@pytest.mark.parametrize(
    "kind", ["ended", "not ended", "some ended", "many some ended", "no manifest", "several sequences", "empty ones"]
)
def test_blocks_are_those_of_a_concatenation(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(document_stream, "GROUP", 8)
    if kind == "many some ended":
        monkeypatch.setattr(document_stream, "MAX_EXCEPTIONS", 4)
    documents = random_documents(60, ended=kind not in ("not ended", "no manifest"))
    if "some ended" in kind:
        documents = [each[:-1] if number % 3 and len(each) > 1 else each for number, each in enumerate(documents)]
    if kind == "empty ones":
        documents = [each[:0] if number % 4 == 0 else each for number, each in enumerate(documents)]
    flags = {}
    if kind in ("no manifest", "empty ones"):
        path, flags = write_plain(tmp_path / "a", [[each] if len(each) else [] for each in documents]), {"eod_id": EOD}
    elif kind == "several sequences":
        cut = [np.split(each, range(7, len(each), 7)) for each in documents]
        path, flags = write_plain(tmp_path / "a", cut, np.uint16), {"eod_id": EOD}
    else:
        path = write_documents(tmp_path / "a", documents)
    dataset = datasets_of(path, **flags).train
    stream = concatenated(documents)
    expected = numpy_blocks(stream)
    assert np.array_equal(blocks_of(dataset), expected)
    assert dataset.unused_tokens == len(stream) - (len(expected) * S + 1)


def test_the_files_without_a_manifest_are_those_of_megatrons_builder(tmp_path):
    """Sequences, documents of several sequences and empty documents, as tools/preprocess_data.py writes them."""
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    documents = [np.split(each, range(7, len(each), 7)) for each in random_documents(20)]
    documents[3] = []
    path = write_plain(tmp_path / "a", documents, np.uint16)
    builder = IndexedDatasetBuilder(str(tmp_path / "b.bin"), dtype=np.uint16)
    for sequences in documents:
        tokens = np.concatenate(sequences) if sequences else np.zeros(0, np.int64)
        builder.add_document(torch.from_numpy(tokens), [len(sequence) for sequence in sequences])
    builder.finalize(str(tmp_path / "b.idx"))
    for ending in ("bin", "idx"):
        assert Path(f"{path}.{ending}").read_bytes() == (tmp_path / f"b.{ending}").read_bytes(), ending


@pytest.mark.parametrize(("tokens", "blocks", "unused"), [(3 * S, 2, S - 1), (3 * S + 1, 3, 0), (3 * S + 2, 3, 1)])
def test_the_last_slot_of_the_last_block_has_a_label(tokens, blocks, unused, tmp_path):
    document = np.append(np.arange(tokens - 1) + 2, EOD)
    dataset = datasets_of(write_documents(tmp_path / "a", [document])).train
    assert (len(dataset), dataset.unused_tokens) == (blocks, unused)
    assert np.array_equal(blocks_of(dataset), numpy_blocks(document))


def test_an_epoch_reads_each_block_once_and_each_epoch_in_another_order(tmp_path):
    stream = concatenated(documents := random_documents(300))
    dataset = datasets_of(write_documents(tmp_path / "a", documents)).train
    expected = numpy_blocks(stream)
    order, n = dataset.order(seed=5), len(dataset)
    epochs = [order.positions(epoch * n, n) for epoch in range(3)]
    for numbers in epochs:
        assert sorted(numbers.tolist()) == list(range(n))
        assert np.array_equal(np.stack([dataset[int(number)].read().tokens for number in numbers]), expected[numbers])
    assert len({numbers.tobytes() for numbers in epochs}) == 3
    # Any part of the order is the same as in the whole, so a run resumes in mid-epoch.
    assert np.array_equal(order.positions(n - 3, 11), np.concatenate(epochs)[n - 3 : n + 8])
    assert np.array_equal(dataset.order(5).positions(0, n), epochs[0])
    assert not np.array_equal(dataset.order(6).positions(0, n), epochs[0])
    assert np.array_equal(dataset.order(5, shuffle=False).positions(2, n), (np.arange(n) + 2) % n)
    padded = dataset.order(5, round_up_to=64)
    assert padded.epoch_length == 64 * -(-n // 64)
    assert sorted(set(padded.positions(0, padded.epoch_length).tolist())) == list(range(n))


@pytest.mark.parametrize("n", [1, 2, 3, 17, 60])
def test_permutations_of_single_indices_are_uniform(n):
    """Each element is equally frequent at each position: chi-squared over 400 seeds."""
    seeds = 400
    counts = np.zeros((n, n))
    for seed in range(seeds):
        found = IndexPermutation(n, seed, 7)(np.arange(n))
        assert len(np.unique(found)) == n and found.min() == 0 and found.max() == n - 1
        counts[np.arange(n), found] += 1
    freedom = (n - 1) ** 2
    chi_squared = float(((counts - seeds / n) ** 2 / (seeds / n)).sum())
    assert abs(chi_squared - freedom) <= 5 * np.sqrt(2 * freedom) + 1e-9


def test_permutations_do_not_keep_neighbours_together():
    found = IndexPermutation(100_000, 3)(np.arange(100_000))
    # Of a random permutation, about two pairs of neighbours stay neighbours.
    assert np.count_nonzero(np.abs(np.diff(found)) == 1) < 12
    assert abs(np.corrcoef(np.arange(100_000), found)[0, 1]) < 0.02


def test_documents_are_split_whole_at_the_shares_of_the_tokens(tmp_path):
    documents = random_documents(2000, longest=60)
    path = write_documents(tmp_path / "a", documents)
    total = sum(map(len, documents))
    found = datasets_of(path, split="80,15,5", evaluate=True)
    numbers = {}
    for name, share in (("train", 0.8), ("valid", 0.15), ("test", 0.05)):
        component = found.split(name).components[0]
        mask = component.stream.selection.mask(0, len(documents))
        numbers[name] = np.flatnonzero(mask)
        chosen = [documents[number] for number in numbers[name]]
        assert np.array_equal(blocks_of(found.split(name)), numpy_blocks(concatenated(chosen)))
        assert abs(component.stream.tokens - share * total) <= 61, name
    assert sorted(np.concatenate(list(numbers.values())).tolist()) == list(range(len(documents)))
    # The validation documents come from all parts of the file.
    assert len(set((numbers["valid"] // 500).tolist())) == 4
    mask = found.valid.components[0].stream.selection.mask(0, 2000)
    for seed in (3, 4):
        other = datasets_of(path, split="80,15,5", seed=seed, evaluate=True).valid.components[0].stream.selection
        assert np.array_equal(other.mask(0, 2000), mask) == (seed == 3)


def test_a_share_of_zero_gets_nothing(tmp_path):
    path = write_documents(tmp_path / "a", random_documents(50))
    found = datasets_of(path, split="1,0,1", evaluate=True)
    assert found.valid is None and found.test is not None
    assert datasets_of(path, split="100,0,0").train.components[0].stream.tokens == len(
        concatenated(random_documents(50))
    )


@pytest.mark.parametrize("split", ["100,0,0", "70,20,10"])
def test_the_blocks_are_those_of_megatrons_gpt_dataset(split, tmp_path):
    """Through Megatron's own unshuffled indices of the same files, split in file order."""
    from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

    class Tokenizer:
        vocab_size, eod, pad, unique_identifiers = VOCABULARY, EOD, 0, {"name": "none"}

    documents = random_documents(400)
    path = write_documents(tmp_path / "a", documents)
    config = GPTDatasetConfig(
        random_seed=1, sequence_length=S, blend=([path], None), split=split, reset_position_ids=True,
        reset_attention_mask=True, eod_mask_loss=False, tokenizer=Tokenizer(), create_attention_mask=False,
        path_to_cache=str(tmp_path / "cache"),
    )  # fmt: skip
    theirs = BlendedMegatronDatasetBuilder(GPTDataset, [None, None, None], lambda: True, config).build()
    ours = datasets_of(path, split=split, split_in_file_order=True, evaluate=True)
    settings = DataLoaderSettings(S, 1, 1, reset_position_ids=True, reset_attention_mask=True)
    for name, dataset in zip(("train", "valid", "test"), theirs, strict=True):
        own = ours.split(name)
        if own is None:
            assert dataset is None
            continue
        assert dataset.document_index.tolist() != sorted(dataset.document_index.tolist()), "it shuffles documents"
        # Megatron concatenates the documents in the order of document_index; the same files in file order:
        dataset.document_index[:] = np.sort(dataset.document_index)
        dataset.sample_index = _sample_index(dataset, len(own))
        dataset.shuffle_index = np.arange(len(own))
        for number in range(len(own)):
            sample, batch = (
                dataset[number],
                BlockDataLoader(own, own.order(0, shuffle=False), settings).batch_of([number]),
            )
            assert np.array_equal(batch.tokens.numpy()[0], sample["tokens"].numpy()), (name, number)
            assert np.array_equal(batch.labels.numpy()[0], sample["labels"].numpy()), (name, number)
            assert np.array_equal(batch.positions.numpy(), sample["position_ids"].numpy()), (name, number)
            assert np.array_equal(batch.loss_weights.numpy()[0], sample["loss_mask"].numpy()), (name, number)


def _sample_index(dataset, samples: int) -> np.ndarray:
    """Return Megatron's sample index of a document index, from its C++ helper."""
    from megatron.core.datasets import helpers

    return helpers.build_sample_idx(
        dataset.dataset.sequence_lengths, dataset.document_index, S, 1,
        int(dataset.dataset.sequence_lengths[dataset.indices].sum()), True, 1,
    )  # fmt: skip


def test_documents_are_separated_by_either_flag(tmp_path):
    path = write_documents(tmp_path / "a", random_documents(40, longest=9))
    dataset = datasets_of(path).train
    order = dataset.order(0, shuffle=False)
    for reset_positions, reset_mask in ((False, False), (True, False), (False, True)):
        settings = DataLoaderSettings(
            S, 2, 2, reset_position_ids=reset_positions, reset_attention_mask=reset_mask, vocabulary=VOCABULARY
        )
        batch = BlockDataLoader(dataset, order, settings).batch_of(np.array([1, 4]))
        blocks = [dataset[number].read().tokens for number in (1, 4)]
        assert batch.trained_tokens == 2 * S == batch.tokens_count
        assert np.array_equal(batch.labels.numpy()[0], np.concatenate([block[1:] for block in blocks]))
        tokens = np.concatenate([block[:-1] for block in blocks])
        if not (reset_positions or reset_mask):
            assert batch.actual_seq_len == (S, 2 * S)
        else:
            at_ends = {int(place) + 1 for place in np.flatnonzero(tokens == EOD)}
            assert batch.actual_seq_len == tuple(sorted(at_ends | {S, 2 * S}))
        lengths = segment_lengths(batch.actual_seq_len if reset_positions else (S, 2 * S))
        assert batch.positions.tolist() == [position for length in lengths for position in range(length)]


def test_an_end_token_inside_a_document_does_not_cut_it(tmp_path):
    documents = [np.array([5, EOD, 6, 7, EOD]), np.array([8, 9, EOD] + [10] * 20 + [EOD])]
    dataset = datasets_of(write_documents(tmp_path / "a", documents)).train
    assert dataset[0].read().ends == (5, S)


def test_blends(tmp_path):
    sets = [random_documents(count, seed=count) for count in (200, 50)]
    paths = [write_documents(tmp_path / str(number), each) for number, each in enumerate(sets)]
    sizes = [len(numpy_blocks(concatenated(each))) for each in sets]
    weighted = datasets_of("0.5", paths[0], "0.5", paths[1]).train
    n = len(weighted)
    assert n == sum(sizes)
    numbers = weighted.order(7).positions(0, 4 * n)
    from_second = numbers >= sizes[0]
    assert abs(int(from_second.sum()) - 2 * n) <= 1
    assert not np.array_equal(from_second, np.sort(from_second))
    # Each set is read to its end before it begins again.
    seconds = numbers[from_second] - sizes[0]
    assert sorted(seconds[: sizes[1]].tolist()) == sorted(seconds[sizes[1] : 2 * sizes[1]].tolist())
    assert seconds[: sizes[1]].tolist() != seconds[sizes[1] : 2 * sizes[1]].tolist()
    merged = datasets_of(*paths).train
    assert sorted(merged.order(7).positions(0, n).tolist()) == list(range(n))
    in_order = merged.order(7, shuffle=False, round_up_to=n + 5)
    whole = in_order.positions(0, n + 5)
    assert sorted(whole[:n].tolist()) == list(range(n)) and np.array_equal(whole[n:], whole[:5])
    parts = [in_order.positions(start, 7) for start in range(0, n - 7, 7)]
    assert np.array_equal(np.concatenate(parts), whole[: 7 * len(parts)])
    # Each set is spread evenly: after any number of positions its share is within one block.
    reached = np.cumsum(whole[:n] >= sizes[0])
    assert np.abs(reached - sizes[1] * np.arange(1, n + 1) / n).max() <= 1


def test_a_path_per_split(tmp_path):
    sets = {name: random_documents(30, seed=number) for number, name in enumerate(("train", "valid", "test"))}
    paths = {f"{name}_data_path": [write_documents(tmp_path / name, each)] for name, each in sets.items()}
    found = datasets_of(split=None, evaluate=True, **paths)
    for name, documents in sets.items():
        assert np.array_equal(blocks_of(found.split(name)), numpy_blocks(concatenated(documents)))


def test_memory_does_not_grow_with_the_number_of_documents(tmp_path):
    """At most 8 bytes per 1,024 documents remain, and opening takes a part of the index at a time."""
    held, peaks = [], []
    for number, count in enumerate((1_000, 1_000_000)):
        lengths = np.random.default_rng(0).integers(1, 40, count).astype(np.int32)
        path = tmp_path / f"{number}_text_document"
        pointers = 2 * (np.cumsum(lengths, dtype=np.int64) - lengths)
        parts = [HEAD.pack(MAGIC, 1, 8, count, count + 1), lengths, pointers, np.arange(count + 1, dtype=np.int64)]
        Path(f"{path}.idx").write_bytes(b"".join(part if isinstance(part, bytes) else part.tobytes() for part in parts))
        with Path(f"{path}.bin").open("wb") as file:
            file.truncate(2 * int(lengths.sum()))
        tracemalloc.start()
        found = datasets_of(str(path), split="90,9,1", eod_id=0)
        found.train[len(found.train) // 2].read()
        current, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        held.append(current)
        peaks.append(peak)
    assert held[1] - held[0] <= 8 * 1_000_000 / 1024 + 10_000, held
    assert peaks[1] < 50e6, peaks


@pytest.mark.parametrize(
    ("flags", "error", "message"),
    [
        ({"s": 100_000}, DataError, r"--seq-length 100000: a block takes 100,001 tokens.*train.* has .*lower"),
        ({"split": "99,1,0", "s": 500, "evaluate": True}, DataError, r"split valid .*larger share in --split"),
        ({"eod_id": 9}, ConfigError, r"--eod-id 9: the manifest of .* names the end token 1"),
    ],
)
def test_refused(flags, error, message, tmp_path):
    path = write_documents(tmp_path / "a", random_documents(200))
    with pytest.raises(error, match=message):
        datasets_of(path, **flags)


def test_files_that_cannot_be_used_are_refused_with_advice(tmp_path):
    path = Path(write_plain(tmp_path / "a", [[each] for each in random_documents(20)]))
    with pytest.raises(ConfigError, match=r"the end token of .* is unknown.*--tokenizer-name-or-path, or --eod-id"):
        datasets_of(str(path))
    with pytest.raises(DataError, match=r"give the complete name, .*a_text_document"):
        datasets_of(str(tmp_path / "a"), eod_id=EOD)
    with pytest.raises(DataError, match=r"without its ending"):
        datasets_of(f"{path}.bin", eod_id=EOD)
    with pytest.raises(DataError, match=r"no document files .*--output-format document"):
        datasets_of(str(tmp_path / "b"), eod_id=EOD)
    with pytest.raises(DataError, match="holds documents; leave --is-instruction-dataset out"):
        datasets_of(str(path), is_instruction_dataset=True)
    data = Path(f"{path}.bin").read_bytes()
    Path(f"{path}.bin").write_bytes(data[:-4])
    with pytest.raises(DataError, match=rf"\.bin: {len(data) - 4} bytes, but {len(data)} according to"):
        datasets_of(str(path), eod_id=EOD)
    empty = write_plain(tmp_path / "empty", [[], [np.zeros(0, np.int64)]])
    with pytest.raises(DataError, match="its 2 documents have no tokens"):
        datasets_of(empty, eod_id=EOD)


def test_ids_outside_of_the_vocabulary_are_refused(tmp_path):
    dataset = datasets_of(write_documents(tmp_path / "a", random_documents(200))).train
    settings = DataLoaderSettings(S, 1, 1, vocabulary=VOCABULARY // 2)
    with pytest.raises(DataError, match=r"block 0 of the split train .* outside the vocabulary of 150.*--vocab-size"):
        BlockDataLoader(dataset, dataset.order(0, shuffle=False), settings).batch_of(np.array([0]))


def test_other_files_than_those_of_the_manifest_are_refused(tmp_path):
    path = write_documents(tmp_path / "a", random_documents(20))
    write_documents(tmp_path / "b", random_documents(21))
    for ending in ("bin", "idx"):
        Path(f"{path}.{ending}").write_bytes((tmp_path / f"b_text_document.{ending}").read_bytes())
    with pytest.raises(DataError, match=r"bytes, but .* according to a_text_document_manifest\.json"):
        datasets_of(path)
    document_manifest_path(path).write_text("{}")
    with pytest.raises(DataError, match="not a manifest"):
        datasets_of(path)
