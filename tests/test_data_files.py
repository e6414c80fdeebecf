"""From --data-path to the packs of each split, and what is refused on the way."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_files import HASH, E, P, S, rows_of, write

from mindspeed_llm.arguments.data_arguments import DataArguments
from mindspeed_llm.data import DataLoaderSettings, Datasets, PackedDataLoader, build_datasets
from mindspeed_llm.errors import ConfigError, DataError, UserError
from mindspeed_llm.indexed_dataset import IndexedWriter
from mindspeed_llm.manifest import TokenizerInfo, column_prefix


def data_of(*path: str, **values: Any) -> DataArguments:
    defaults: dict[str, Any] = {
        "seq_length": S,
        "data_path": list(path),
        "split": "100,0,0",
        "is_instruction_dataset": True,
        "neat_pack": True,
        "reset_position_ids": True,
    }
    return DataArguments(**{**defaults, **values})


def built(data: DataArguments, evaluate: bool = True, **values: Any) -> Datasets:
    return build_datasets(data, seed=1234, evaluate=evaluate, **values)


def test_neat_packs_are_read_back(tmp_path: Path) -> None:
    prefix = write(tmp_path / "alpaca", 5)
    datasets = built(data_of(prefix, prompt_type="qwen"), tokenizer_sha256=HASH, vocabulary=1000)
    assert len(datasets.train) == 5 and datasets.valid is datasets.test is None
    assert (datasets.kind.packed, datasets.kind.neat, datasets.eod, datasets.pad) == (True, True, E, P)
    pack = datasets.train[3]
    assert pack.sample_id == (prefix, 3) and pack.length == S
    for column, expected in zip((pack.input_ids, pack.attention_mask, pack.labels), rows_of(5, "neat")[3], strict=True):
        assert column.tolist() == expected.tolist()
    with pytest.raises(IndexError):
        datasets.train[5]


def test_a_split_divides_the_packs(tmp_path: Path) -> None:
    datasets = built(data_of(write(tmp_path / "alpaca", 40), split="80,15,5"))
    parts = [datasets.split(name) for name in ("train", "valid", "test")]
    numbers = [[part.sample_id(i)[1] for i in range(len(part))] for part in parts if part is not None]
    assert [len(part) for part in numbers] == [32, 6, 2]
    assert sorted(n for part in numbers for n in part) == list(range(40))
    assert all(part == sorted(part) for part in numbers)
    assert numbers[1] != list(range(32, 38)), "the end of the file, not a random part"


def test_padded_samples_repeat_packs_of_their_own_split(tmp_path: Path) -> None:
    # Defect: validation was padded with the first packs of the whole file, which are trained.
    datasets = built(data_of(write(tmp_path / "alpaca", 40), split="80,15,5"))
    assert datasets.valid is not None
    order = datasets.valid.order(seed=1, shuffle=False, round_up_to=8)
    trained = {datasets.train.sample_id(i) for i in range(len(datasets.train))}
    read = [datasets.valid.sample_id(int(i)) for i in order.positions(0, 16)]
    assert order.epoch_length == 8 and len(set(read)) == 6 and not trained & set(read)
    assert read[6:8] == read[:2] == read[8:10]


def test_new_files_under_the_same_prefix_are_seen(tmp_path: Path) -> None:
    # Defect: a cached index of the old files was used for the new ones.
    prefix = write(tmp_path / "alpaca", 5)
    assert len(built(data_of(prefix)).train) == 5
    write(tmp_path / "alpaca", 9)
    assert len(built(data_of(prefix)).train) == 9
    assert {path.suffix for path in tmp_path.iterdir()} == {".bin", ".idx", ".json"}, "reading left something behind"


def test_a_share_that_comes_out_empty_is_refused_only_if_it_is_read(tmp_path: Path) -> None:
    prefix = write(tmp_path / "alpaca", 10)
    with pytest.raises(DataError, match="leaves no pack for test"):
        built(data_of(prefix, split="949,50,1"))
    assert built(data_of(prefix, split="949,50,1"), evaluate=False).test is None
    datasets = built(data_of(write(tmp_path / "more", 40), split=None))  # Megatron's 969,30,1: nobody asked for test
    assert datasets.valid is not None and datasets.test is None


def test_blended_data_and_separate_paths_per_split(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a", 4), write(tmp_path / "b", 12)
    train = built(data_of("3", a, "1", b)).train
    ids = [train.sample_id(int(i)) for i in train.order(seed=1).positions(0, 16)]
    assert sum(prefix == a for prefix, _ in ids) == 12
    train = built(data_of(a, b)).train
    ids = [train.sample_id(int(i)) for i in train.order(seed=1).positions(0, 16)]
    assert len(set(ids)) == 16
    assert train.lengths().tolist() == [S] * 16
    datasets = built(data_of(train_data_path=[b], valid_data_path=[a]))
    assert datasets.valid is not None and datasets.test is None
    assert (len(datasets.train), len(datasets.valid)) == (12, 4)


def refused(data: DataArguments, **values: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        built(data, **values)
    return caught.value.problems


def test_all_incompatibilities_are_reported_together(tmp_path: Path) -> None:
    # Defect: no metadata in the files; wrong tokenizer, length or template went unnoticed.
    prefix = write(tmp_path / "alpaca", 3)
    problems = refused(
        data_of(prefix, neat_pack=False, seq_length=4, prompt_type="llama2"), tokenizer_sha256="c" * 64, vocabulary=9
    )
    assert len(problems) == 4
    for flag in ("--neat-pack", "--seq-length 4", "--tokenizer-name-or-path", "--prompt-type llama2"):
        assert sum(flag in problem for problem in problems) == 1, problems
    assert all(prefix in problem for problem in problems)
    (problem,) = refused(data_of(prefix), vocabulary=9)
    assert "--tokenizer-name-or-path" in problem and "1000" in problem
    (problem,) = refused(data_of(prefix), tokenizer_sha256="c" * 64, vocabulary=1000)
    assert "--tokenizer-name-or-path" in problem and "SHA-256 aaaaaaaaaaaa" in problem


@pytest.mark.parametrize("manifest", [True, False])
@pytest.mark.parametrize(("kind", "others"), [("plain", "plain packs"), ("unpacked", "unpacked samples")])
@pytest.mark.filterwarnings("ignore:.*manifest")
def test_neat_pack_on_other_files_is_refused(tmp_path: Path, manifest: bool, kind: str, others: str) -> None:
    # Defect: trained with one segment, silently.
    prefix = write(tmp_path / "alpaca", 5, kind, manifest)
    (problem,) = refused(data_of(prefix))
    assert problem.startswith(f"--neat-pack: {prefix} holds {others}")
    assert built(data_of(prefix, neat_pack=False)).kind.packed == (kind == "plain")


@pytest.mark.parametrize("manifest", [True, False])
@pytest.mark.filterwarnings("ignore:.*manifest")
def test_neat_files_without_the_flag_are_refused(tmp_path: Path, manifest: bool) -> None:
    (problem,) = refused(data_of(write(tmp_path / "alpaca", 5, "neat", manifest), neat_pack=False))
    assert "add --neat-pack" in problem


def test_end_tokens_inside_samples_of_plain_packs_are_refused(tmp_path: Path) -> None:
    prefix = write(tmp_path / "alpaca", 5, "plain", eod_inside_sample=True)
    (problem,) = refused(data_of(prefix, neat_pack=False))
    assert problem.startswith("--reset-position-ids: an end token occurs inside samples") and "--neat-pack" in problem
    built(data_of(prefix, neat_pack=False, reset_position_ids=False))
    built(data_of(write(tmp_path / "neat", 5, eod_inside_sample=True)))
    built(data_of(write(tmp_path / "one", 5, "unpacked", eod_inside_sample=True), neat_pack=False))


def test_plain_packs_without_a_manifest_give_a_warning(tmp_path: Path) -> None:
    prefix = write(tmp_path / "alpaca", 5, "plain", manifest=False)
    with pytest.warns(UserWarning, match="with an end token before their last token will be cut"):
        datasets = built(data_of(prefix, neat_pack=False))
    assert datasets.eod is datasets.pad is None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        built(data_of(write(tmp_path / "neat", 5, manifest=False)))
    assert len(caught) == 1, [str(one.message) for one in caught]


def test_unpacked_samples_may_be_shorter_than_seq_length_and_not_longer(tmp_path: Path) -> None:
    prefix = write(tmp_path / "alpaca", 5, "unpacked")
    datasets = built(data_of(prefix, neat_pack=False, seq_length=16))
    assert datasets.train.lengths().tolist() == [3, 4, 5, 6, 3]
    (problem,) = refused(data_of(prefix, neat_pack=False, seq_length=5))
    assert problem.startswith(f"--seq-length 5: sample 3 of {prefix} has 6 tokens")
    built(data_of(prefix, neat_pack=False, seq_length=6))


def test_incompatible_data_sets_are_refused(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a", 4, "plain"), write(tmp_path / "b", 4, "unpacked")
    (problem,) = refused(data_of(a, b, neat_pack=False))
    assert problem.startswith(f"--data-path: {a} holds plain packs, {b} unpacked samples")
    other = TokenizerInfo("PretrainedFromHF", "d" * 64, 1000, P, E)
    c = write(tmp_path / "c", 4, "plain", tokenizer=other)
    (problem,) = refused(data_of(a, c, neat_pack=False))
    assert problem == f"--data-path: {a} and {c} were made with different tokenizers"


def test_missing_and_empty_data_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        built(data_of(str(tmp_path / "no"), str(tmp_path / "nothing")))
    assert "no_packed" in str(caught.value) and "nothing_packed" in str(caught.value)
    prefix = write(tmp_path / "empty", 0)
    with pytest.raises(DataError, match="no pack"):
        built(data_of(prefix))
    with pytest.raises(DataError, match=f"no packs for train in {prefix}: preprocess again"):
        built(data_of(train_data_path=["1", prefix, "1", write(tmp_path / "alpaca", 2)]))
    with pytest.raises(DataError, match="give it a share in --split"):
        built(data_of(write(tmp_path / "held", 4), split="0,1,0"))


def test_files_that_megatron_wrote_become_batches(tmp_path: Path) -> None:
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    for at, column in enumerate(("input_ids", "attention_mask", "labels")):
        path = column_prefix(tmp_path / "alpaca", column)
        writer = IndexedDatasetBuilder(f"{path}.bin", dtype=np.int32)
        for row in rows_of(4, "neat"):
            writer.add_document(torch.from_numpy(row[at]), [S])
        writer.finalize(f"{path}.idx")
    with pytest.warns(UserWarning, match="manifest"):
        train = built(data_of(str(tmp_path / "alpaca"))).train
    settings = DataLoaderSettings(seq_length=S, micro_batch_size=2, global_batch_size=4)
    first, second = PackedDataLoader(train, train.order(seed=1, shuffle=False), settings).micro_batches(0)
    assert first.actual_seq_len == second.actual_seq_len == (3, 6, 8, 11, 14, 16)
    assert second.tokens is not None and second.tokens[0, :6].tolist() == [30, 31, E, 33, 34, E]


def test_only_the_mask_of_a_damaged_writer_is_noticed(tmp_path: Path) -> None:
    """Columns of different lengths are refused when opened, not when trained."""
    write(tmp_path / "alpaca", 3, manifest=False)
    with IndexedWriter(column_prefix(tmp_path / "alpaca", "labels")) as writer:
        writer.add(np.zeros(S, np.int32))
        writer.finish()
    with pytest.raises(DataError, match="labels"):
        built(data_of(str(tmp_path / "alpaca")))
