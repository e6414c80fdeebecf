"""Raw data as --data-path: the start preprocesses them, and trains as with the two commands."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from raw_data_runs import RawDataFolder
from time_limits import HANG_SECONDS
from tiny_runs import train_records

from mindspeed_llm.arguments.notices import collect_notices
from mindspeed_llm.arguments.preprocess_arguments import parse_preprocess_arguments
from mindspeed_llm.arguments.pretrain_parser import parse_pretrain_arguments
from mindspeed_llm.devices import apply_patches
from mindspeed_llm.errors import ConfigError, DataError, UserError
from mindspeed_llm.lease import HeldLeases, LeaseTiming
from mindspeed_llm.manifest import Manifest, manifest_path
from mindspeed_llm.prepare_data import find_prepared_data, preparation, prepare_data, preprocess_process
from mindspeed_llm.prepare_data.preprocess_process import own_flags, preprocess_in_process
from mindspeed_llm.preprocessing import preprocess

ROOT = Path(__file__).parents[1]
LOSSES = ("loss", "grad_norm", "learning_rate", "consumed_samples", "trained_tokens", "tokens")


@pytest.fixture
def raw(tmp_path: Path) -> RawDataFolder:
    return RawDataFolder(tmp_path)


def parsed(words: list[str]):
    return parse_pretrain_arguments([*words, "--train-iters", "1"], 1)


def packed_files(folder: Path) -> dict[str, bytes]:
    """Content of the packed files in a folder, by the names of columns and lists."""
    return {path.name.partition("_")[2]: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def launch(folder: Path, commands: list[list[str]]) -> tuple[str, list[list[int]]]:
    """Run commands in one torchrun job with two ranks; return the output, and the statuses of each rank."""
    (folder / "commands.json").write_text(json.dumps(commands), "utf-8")
    program = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*program, str(ROOT / "tests" / "raw_data_program.py"), str(folder)],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    return said, [json.loads((folder / f"status_{rank}.json").read_text("utf-8")) for rank in range(2)]


def test_one_command_trains_like_the_two(raw: RawDataFolder, tmp_path: Path) -> None:
    """Also when it is stopped and resumed, and a handler that does not fit ends both ranks."""
    preprocess(parse_preprocess_arguments(raw.preprocess_words(tmp_path / "two" / "rows")))
    one = ["--save", str(tmp_path / "one")]
    said, statuses = launch(
        tmp_path,
        [
            raw.words(tmp_path / "two" / "rows", "--train-iters", "4", "--run-dir", str(tmp_path / "run")),
            raw.raw_words(*one, "--train-iters", "2"),
            raw.raw_words(*one, "--train-iters", "4"),
            raw.raw_words("--train-iters", "2", "--map-keys", '{"prompt":"question"}', "--save", str(tmp_path / "no")),
        ],
    )
    assert statuses == [[0, 0, 0, 2]] * 2, said
    (made,) = (tmp_path / "one" / "packed_data").iterdir()
    assert packed_files(made) == packed_files(tmp_path / "two")
    records = [train_records(run) for run in (tmp_path / "run", tmp_path / "one" / "run")]
    exact, resumed = ({n: [run[n][name] for name in LOSSES] for n in run} for run in records)
    assert list(exact) == [1, 2, 3, 4] and resumed == exact
    assert said.count(": preprocessing it into ") == 2 and said.count(": using its packed files in the cache") == 1
    assert said.count("error:") == 1 and "(rank 0): --map-keys: no row has the column 'question'" in said
    assert not (tmp_path / "no").exists(), "nothing is written"


def test_one_machine(raw: RawDataFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The paths that training gets, with weights and per split; other flags make another set."""
    cache = ["--data-cache-path", str(tmp_path / "cache")]
    other = tmp_path / "other.json"
    other.write_text(raw.rows.read_text()[:-1] + ', {"instruction": "a", "output": "b"}]')
    arguments = parsed(raw.raw_words(*cache))
    assert find_prepared_data(arguments) == arguments and not (tmp_path / "cache").exists()
    words = raw.raw_words(*cache)
    words[words.index("--data-path") + 1 : words.index("--data-path") + 2] = ["0.30", str(raw.rows), "2", str(other)]
    prepared = prepare_data(parsed(words))
    first, second = prepared.data.data_path[1::2]
    assert prepared.data.data_path[::2] == ["0.30", "2"] and first.endswith("/rows") and second.endswith("/other")
    assert find_prepared_data(parsed(words)) == prepared
    # The seed of the run does not change the packs; flags of preprocessing do.
    assert prepare_data(parsed(raw.raw_words(*cache, "--seed", "5", "--workers", "1"))).data.data_path == [first]
    assert find_prepared_data(parsed(raw.raw_words(*cache, "--mask-history"))).data.data_path == [str(raw.rows)]
    os.utime(raw.rows, ns=(1, 1))
    assert find_prepared_data(parsed(raw.raw_words(*cache))).data.data_path == [str(raw.rows)]
    # A damaged set is made again.
    label = Path(f"{second}_packed_labels_document.bin")
    label.write_bytes(label.read_bytes()[:-1])
    caplog.clear()
    assert prepare_data(parsed(words)).data.data_path[3] == second
    assert label.stat().st_size and not list((tmp_path / "cache").glob("*/lease*"))


def test_virtual_tokens_are_reserved_in_raw_data(raw: RawDataFolder, tmp_path: Path) -> None:
    """The run passes its --virtual-tokens to preprocessing, and another number is another set of files."""
    cache = ("--data-cache-path", str(tmp_path / "cache"))
    flags = ("--reset-position-ids", "--tuning", "prompt", "--virtual-tokens", "4")
    (reserved,) = prepare_data(parsed(raw.raw_words(*cache, *flags))).data.data_path
    (plain,) = prepare_data(parsed(raw.raw_words(*cache))).data.data_path
    assert reserved != plain
    assert Manifest.read(manifest_path(reserved)).virtual_tokens == 4
    assert Manifest.read(manifest_path(plain)).virtual_tokens == 0


def test_bad_input_is_one_line_each(raw: RawDataFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All problems of raw data are found before anything is preprocessed."""
    monkeypatch.setattr(preparation, "preprocess_in_process", lambda *_: pytest.fail("it was preprocessed"))
    cache = ["--data-cache-path", str(tmp_path / "cache")]
    preprocess(parse_preprocess_arguments(raw.preprocess_words(tmp_path / "two" / "rows")))
    packed, empty = str(tmp_path / "two" / "rows"), tmp_path / "empty.json"
    empty.touch()
    words = raw.raw_words(*cache)
    words.insert(words.index("--data-path") + 2, packed)
    words.insert(words.index("--data-path") + 2, str(empty))
    words.insert(words.index("--data-path") + 2, "nothing")
    with pytest.raises(ConfigError) as raised:
        prepare_data(parsed(words))
    assert [line.partition(":")[0] for line in raised.value.problems] == [
        "--data-path nothing",
        "--data-path",
        *[f"--data-path {empty}"],
    ]
    assert "is raw data, but" in raised.value.problems[1]
    # Only packed files: the flags of raw data have no effect.
    assert prepare_data(parsed([*raw.words(packed), "--handler-name", "x"])).data.data_path == [packed]
    with pytest.raises(ConfigError, match=r"^--prompt-type: GeneralPretrainHandler reads plain text"):
        parsed(raw.raw_words("--handler-name", "GeneralPretrainHandler", "--enable-thinking", "false"))
    (tmp_path / "file").touch()
    with pytest.raises(
        UserError, match=r"^--data-cache-path .*file/x/packed-.*: cannot be written \(Not a directory\)"
    ):
        prepare_data(parsed(raw.raw_words("--data-cache-path", str(tmp_path / "file" / "x"))))
    assert not (tmp_path / "cache").exists()


def test_weights_and_model_type(raw: RawDataFolder, tmp_path: Path) -> None:
    from mindspeed_llm.programs import pretrain

    def problems(*more: str) -> list[str]:
        with pytest.raises(ConfigError) as raised:
            parsed(raw.raw_words(*more))
        return raised.value.problems

    assert problems("--model-type-hf", "llama3") == [
        f"--model-type-hf llama3: {tmp_path}/hf/config.json describes a qwen3; leave the flag out"
    ]
    parsed(raw.raw_words("--model-type-hf", "llama2"))
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "latest_checkpointed_iteration.txt").write_text("1")
    assert (
        f"--enable-hf2mg-convert: --load {checkpoint} is no Hugging Face folder"
        in problems("--load", str(checkpoint))[-1]
    )
    flags = parsed(raw.raw_words()).checkpoint
    pretrain.check_weights_of_load(flags)
    file = tmp_path / "hf" / "model.safetensors"
    os.truncate(file, file.stat().st_size - 100)
    with pytest.raises(UserError, match=f"^{file}: cannot be read"):
        pretrain.check_weights_of_load(flags)


def test_notices(raw: RawDataFolder) -> None:
    def said(words: list[str]) -> list[str]:
        return collect_notices(parsed(words), "cpu")

    shared = "--no-shared-storage"
    (converts,) = said(raw.raw_words())
    assert converts.startswith("--enable-hf2mg-convert: the weights of --load are read directly")
    assert said(raw.raw_words(shared))[0].startswith(f"{shared}: each machine preprocesses its own copy")
    assert said(raw.words("prefix", shared, "--pack", "--workers", "2"))[:1] == [
        f"no effect: {shared} (every rank computes the order of the data itself; only the packed files are shared); "
        "--workers, --pack (without --handler-name)"
    ]


def test_raw_data_without_a_handler(raw: RawDataFolder) -> None:
    from mindspeed_llm.data import build_datasets

    with pytest.raises(DataError, match=r"rows.json: no packed files; it is raw data: add --handler-name"):
        build_datasets(parsed(raw.words(raw.rows)).data, 1, evaluate=False)


def test_dry_run_does_not_preprocess(raw: RawDataFolder, tmp_path: Path) -> None:
    apply_patches("cpu")
    from mindspeed_llm.dry_run.data_summary import summarize_data
    from mindspeed_llm.dry_run.plan_report import _data

    words = ["--save", str(tmp_path / "save"), "--dry-run", "--micro-batch-size", "1", "--train-epochs", "2"]
    arguments = find_prepared_data(parse_pretrain_arguments(raw.raw_words(*words), 1))
    summary = summarize_data(arguments.data, arguments.tokenizer, arguments.training)
    lines = list(_data(SimpleNamespace(arguments=arguments, data=summary, length_is_known=False)))  # type: ignore[arg-type]
    assert lines[0] == f"data: {raw.rows}: raw data, which a dry run does not preprocess: steps per epoch unknown"
    assert lines[2] == "run: 2 epochs; the number of steps depends on the data"
    assert not (tmp_path / "save").exists()


def test_another_chat_template_is_another_set(raw: RawDataFolder, tmp_path: Path) -> None:
    """Its content counts, not only its path."""
    file = tmp_path / "mine.jinja"
    folder = Path(raw.raw_words()[raw.raw_words().index("--tokenizer-name-or-path") + 1])
    other = folder / "additional_chat_templates" / "short.jinja"
    found = []
    for changed, text in ((file, "a"), (file, "b"), (other, "c"), (other, "d")):
        changed.parent.mkdir(exist_ok=True)
        changed.write_text(text)
        file.touch()
        arguments = parsed(raw.raw_words("--chat-template", str(file), "--prompt-type", "hf"))
        found.append(preparation._cached_set_of(arguments, str(raw.rows)).prefix.parent.name)
    assert len(set(found)) == 4
    assert found[-1] == preparation._cached_set_of(arguments, str(raw.rows)).prefix.parent.name


def test_a_second_run_waits_for_the_first(
    raw: RawDataFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It uses the files that the first one makes."""
    timing = LeaseTiming(beat=0.05, silence=60, silence_of_same_job=60, look=0.05)
    monkeypatch.setattr(preparation, "HeldLeases", lambda: HeldLeases(timing))
    arguments = parsed(raw.raw_words("--data-cache-path", str(tmp_path / "cache")))
    found = preparation._cached_set_of(arguments, str(raw.rows))
    first = HeldLeases(timing)
    first.take({"--data-cache-path": found.prefix.parent})

    def make() -> None:
        time.sleep(0.5)
        preprocess_in_process(found.command, lambda _: None)
        first.__exit__(None, None, None)

    thread = threading.Thread(target=make)
    thread.start()
    monkeypatch.setattr(preparation, "preprocess_in_process", lambda *_: pytest.fail("it was preprocessed twice"))
    reports: list[str] = []
    preparation._make("rows.json", "--data-path", found, reports.append)
    thread.join()
    assert set(reports) == {"waiting for another run that preprocesses the same data"} and found.is_complete


def test_the_process_ends_with_this_one(raw: RawDataFolder, tmp_path: Path) -> None:
    """An interrupt removes what it has written; a defect, a kill and messages for users are told apart."""
    command = parse_preprocess_arguments(raw.preprocess_words(tmp_path / "out" / "rows"))
    rows = [{"instruction": f"Name {n} rivers", "output": f"River {n}. " * 9} for n in range(10_000)]
    raw.rows.write_text(json.dumps(rows), "utf-8")

    def interrupted(_: str) -> None:
        if list((tmp_path / "out").glob(".rows_packed*")):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        preprocess_in_process(command, interrupted, look=0.01)
    assert not (tmp_path / "out").exists()
    own = tmp_path / "programs"
    own.mkdir()
    (own / "killed.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    (own / "defect.py").write_text("raise KeyError('defect')")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(own))
        with pytest.raises(DataError, match=r"killed \(SIGKILL\), usually because the memory"):
            preprocess_in_process(command, str, program="killed")
        with pytest.raises(RuntimeError, match="status 1; its traceback is in the log"):
            preprocess_in_process(command, str, program="defect")
    said = own_flags("--input x: --output-prefix y, --inputs", "--train-data-path")
    assert said == "--train-data-path x: --data-cache-path y, --inputs"
    # The parent is killed: the process ends by itself.
    parent = subprocess.Popen(["sleep", "60"])
    child = subprocess.Popen(
        [sys.executable, "-m", preprocess_process.PROGRAM, str(parent.pid)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
    )
    # It is not the parent, so that the first look ends the process while it waits for its command.
    assert child.wait(HANG_SECONDS) == 1
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    assert child.stdin is not None
    child.stdin.close()
    shutil.rmtree(own)


def run_machines(raw: RawDataFolder, data: list[Path], caches: list[Path], *more: str) -> list[tuple[int, str]]:
    """What torchrun does on two machines with one rank each: status and output of the ranks."""
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "1",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29547",
        "OMP_NUM_THREADS": "1",
        "TORCHELASTIC_RUN_ID": "test",
    }
    words = raw.raw_words("--train-iters", "2", *more)
    place = words.index("--data-path") + 1
    ranks = [
        subprocess.Popen(
            [sys.executable, str(ROOT / "pretrain_gpt.py"), *words[:place], str(data[rank]), *words[place + 1 :]],
            env=environment | {"RANK": str(rank), "GROUP_RANK": str(rank), "XDG_CACHE_HOME": str(caches[rank])},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    said = [rank.communicate(timeout=HANG_SECONDS)[0] for rank in ranks]
    return [(rank.returncode, text) for rank, text in zip(ranks, said, strict=True)]


@pytest.mark.long
@pytest.mark.parametrize("where", ["own caches", "one cache", "missing on one", "shared storage"])
def test_two_machines(raw: RawDataFolder, tmp_path: Path, where: str) -> None:
    """Each preprocesses its own copy with --no-shared-storage, and otherwise rank 0 for both."""
    copy = tmp_path / "copy" / "rows.json"
    copy.parent.mkdir()
    shutil.copyfile(raw.rows, copy)
    caches = [tmp_path / "cache_a", tmp_path / "cache_b"]
    run = ("--run-dir", str(tmp_path / "run"))
    if where == "own caches":
        results = run_machines(raw, [raw.rows, copy], caches, "--no-shared-storage", *run)
        assert [len(list(cache.glob("mindspeed_llm/packed_data/*/*"))) for cache in caches] == [1, 1]
    elif where == "one cache":
        results = run_machines(raw, [raw.rows] * 2, caches[:1] * 2, "--no-shared-storage", *run)
        assert len(list(caches[0].glob("mindspeed_llm/packed_data/*/*"))) == 1
    elif where == "missing on one":
        results = run_machines(raw, [raw.rows, tmp_path / "no.json"], caches, "--no-shared-storage", *run)
        for _, said in results:  # each machine has a log of its own
            assert "(rank 1): --data-path " in said and "no.json: no such file or directory" in said, said
    else:
        # The second machine does not need the raw data.
        results = run_machines(raw, [raw.rows, tmp_path / "no.json"], caches, "--save", str(tmp_path / "save"))
    assert [status for status, _ in results] == [2 if where == "missing on one" else 0] * 2, results


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_start_leaves_no_process_and_no_partial_files(
    raw: RawDataFolder, tmp_path: Path, number: signal.Signals
) -> None:
    """Also not the workers of the preprocessing; the next start makes the files, and removes what may be left."""
    rows = [{"instruction": f"Name {n} rivers", "output": f"River {n}. " * (1 + n % 40)} for n in range(30_000)]
    raw.rows.write_text(json.dumps(rows), "utf-8")
    words = raw.raw_words("--train-iters", "1", "--save", str(tmp_path / "save"))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.Popen([sys.executable, str(ROOT / "pretrain_gpt.py"), *words], env=environment)
    cache, deadline = tmp_path / "save" / "packed_data", time.monotonic() + HANG_SECONDS
    while not list(cache.glob("*/.rows_packed.tokens/tokens")) and time.monotonic() < deadline:
        time.sleep(0.05)
    processes = psutil.Process(run.pid).children(recursive=True)
    assert processes
    os.kill(run.pid, number)
    assert run.wait(HANG_SECONDS) == (-number if number == signal.SIGKILL else 128 + number)
    _, alive = psutil.wait_procs(processes, HANG_SECONDS)
    assert not alive
    assert not list(cache.glob("*/rows_packed*"))
    done = subprocess.run([sys.executable, str(ROOT / "pretrain_gpt.py"), *words], env=environment, check=False)
    assert done.returncode == 0
    (folder,) = cache.iterdir()
    assert len(list(folder.glob("rows_packed_*"))) == len(list(folder.iterdir())) == 7, "nothing else is left"
