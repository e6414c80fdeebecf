"""`--config FILE`: flags from a YAML file, and flags that the manifests of packed files record."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_runs import RUN, SEQ_LENGTH, write_files

from mindspeed_llm.arguments.convert_arguments import parse_convert_arguments
from mindspeed_llm.arguments.inspect_arguments import parse_inspect_arguments
from mindspeed_llm.arguments.preprocess_arguments import parse_preprocess_arguments
from mindspeed_llm.arguments.pretrain_arguments import PretrainArguments
from mindspeed_llm.arguments.pretrain_parser import parse_pretrain_arguments
from mindspeed_llm.errors import ConfigError
from mindspeed_llm.verify.verify_arguments import parse_verify_arguments

RECORDED = ("--is-instruction-dataset", "--neat-pack", "--reset-position-ids", "--prompt-type qwen")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_files(tmp_path / "data")


def problems_of(folder: Path, text: str, *more: str) -> list[str]:
    """Problems of `pretrain_gpt.py --config run.yaml`, without the folder of the file."""
    (folder / "run.yaml").write_text(text)
    with pytest.raises(ConfigError) as raised:
        parse_pretrain_arguments([*RUN.split(), "--data-path", "x", *more, "--config", str(folder / "run.yaml")], 1)
    return [line.replace(f"{folder}/", "") for line in raised.value.problems]


def parsed(folder: Path, text: str, *more: str) -> PretrainArguments:
    (folder / "run.yaml").write_text(text)
    return parse_pretrain_arguments([*more, "--config", str(folder / "run.yaml")], 1)


def as_yaml(words: list[str]) -> str:
    """The flags of a command line as a file, in underscores."""
    lines, names = [], [number for number, word in enumerate(words) if word.startswith("--")]
    for start, end in zip(names, [*names[1:], len(words)], strict=True):
        values = words[start + 1 : end] or ["true"]
        text = values[0] if len(values) == 1 else f"[{', '.join(values)}]"
        lines.append(f"{words[start][2:].replace('-', '_')}: {text}")
    return "\n".join(lines)


def test_a_file_is_the_same_run_as_the_command_line(tmp_path: Path, data: Path) -> None:
    from mindspeed_llm.checkpoints.run_identity import compute_identity  # imports megatron-core

    words = [*RUN.split(), "--data-path", "0.3", str(data), "0.7", str(data), "--lr-warmup-fraction", "1e-2"]
    command, file = parse_pretrain_arguments(words, 1), parsed(tmp_path, as_yaml(words))
    assert file.groups == command.groups and file.given == command.given
    assert compute_identity(file) == compute_identity(command)
    assert not command.sources and set(file.sources) == set(file.given)


def test_the_command_line_wins(tmp_path: Path, data: Path) -> None:
    text = "lr: 1\nsplit: 50,50,0\nno_shuffle: false\ndata-path: [a, b]\nlog-interval: 7"
    arguments = parsed(tmp_path, text, *RUN.split(), "--data-path", str(data))
    assert arguments.training.lr == 1e-3 and arguments.data.split == "80,20,0"
    assert arguments.data.data_path == [str(data)] and not arguments.data.no_shuffle
    assert "--no-shuffle" not in arguments.given and not arguments.sources


def test_the_sources_of_values_are_described(tmp_path: Path, data: Path) -> None:
    arguments = parsed(tmp_path, "clip_grad: 0.5\nfinetune: yes", *RUN.split(), "--data-path", str(data))
    lines = arguments.describe_sources()
    assert lines[0].startswith("command line: ") and "--lr" in lines[0] and "--clip-grad" not in lines[0]
    assert lines[1:] == [f"{tmp_path}/run.yaml: --clip-grad 0.5 --finetune", "all other flags: their defaults"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("clip_gradd: 1", "run.yaml:1: clip_gradd is not a flag of this program; did you mean clip-grad?"),
        ("x: 1", "run.yaml:1: x is not a flag of this program; --help lists them"),
        ("\nmoe-layer: 1", "run.yaml:2: --moe-layer: mixture of experts is not supported yet; leave the flag out"),
        ("config: a", "run.yaml:1: config: a file cannot name another file"),
        ("clip-grad: 1\nclip_grad: 2", "run.yaml:2: clip_grad is also in line 1; keep one"),
        ("clip-grad: true", "run.yaml:1: clip-grad takes a number, not true"),
        ("clip-grad: [1, 2]", "run.yaml:1: clip-grad takes one value, not a list; write one, such as clip-grad: 1,2"),
        ("clip-grad: {a: 1}", "run.yaml:1: clip-grad takes a number, not a mapping"),
        ("clip-grad:", "run.yaml:1: clip-grad has no value; give one, or remove the line"),
        ("clip-grad: abc", "run.yaml:1: --clip-grad abc: not a number"),
        ("clip-grad: -1", "run.yaml:1: --clip-grad -1.0: must be at least 0"),
        ("finetune: 1", "run.yaml:1: finetune takes true or false"),
        ("save: true", 'run.yaml:1: save takes text; write "true" in quotes'),
        ("save: !!python/name:os.system x", "run.yaml:1: save has the tag tag:yaml.org,2002:python/name:os.system"),
        ("[1, 2]", "run.yaml:1: not a mapping; write 'name: value' lines"),
        ("", "run.yaml: the file is empty; write 'name: value' lines"),
        ("a: [", "run.yaml:1: not YAML (expected the node content, but found '<stream end>')"),
    ],
)
def test_mistakes_in_a_file(tmp_path: Path, text: str, expected: str) -> None:
    (problem,) = problems_of(tmp_path, text)
    assert problem.startswith(expected)


def test_all_mistakes_are_reported_together(tmp_path: Path) -> None:
    problems = problems_of(tmp_path, "clip-grad: x\nnope: 1\nfinetune: 3", "--seed", "y")
    assert len(problems) == 4
    with pytest.raises(ConfigError, match="cannot be read"):
        parse_convert_arguments(["--load-dir", "a", "--save-dir", "b", "--config", str(tmp_path / "none.yaml")])
    with pytest.raises(ConfigError, match="given 2 times"):
        parse_convert_arguments(["--load-dir", "a", "--save-dir", "b", "--config=a", "--config", "b"])


def test_every_program_reads_a_file(tmp_path: Path, data: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("load_dir: a\nsave-dir: 007\nspec: [a, b]")
    arguments = parse_convert_arguments(["--config", str(file)])
    assert (arguments.load_dir, arguments.save_dir, arguments.spec) == ("a", "007", ["a", "b"])
    file.write_text(f"prefix: {data}\npack: 3")
    assert parse_inspect_arguments(["--config", str(file)])[0].prefix == str(data)
    assert parse_inspect_arguments(["other", "--config", str(file)])[0].prefix == "other"
    file.write_text("input: [rows.jsonl]\noutput-prefix: out\nhandler-name: X\ntokenizer-name-or-path: t\npack: on")
    assert parse_preprocess_arguments(["--config", str(file), "--seq-length", "8"]).input.input == ["rows.jsonl"]
    file.write_text(f"data-path: {data}\nload: {tmp_path}\npacks: 4")
    with pytest.raises(ConfigError) as raised:
        parse_verify_arguments(["--config", str(file)], 1)
    assert not [line for line in raised.value.problems if "packs" in line or "data-path" in line]


def without(words: str, *flags: str) -> list[str]:
    for flag in flags:
        words = words.replace(f"{flag} ", "")
    return words.split()


def test_flags_are_read_from_the_manifest(data: Path) -> None:
    words = [*without(RUN, *RECORDED, f"--seq-length {SEQ_LENGTH}"), "--data-path", str(data)]
    short, full = parse_pretrain_arguments(words, 1), parse_pretrain_arguments([*RUN.split(), *words[-2:]], 1)
    assert short.data == full.data and not {"--neat-pack", "--seq-length"} & short.given
    from mindspeed_llm.checkpoints.run_identity import compute_identity  # imports megatron-core

    assert compute_identity(short) == compute_identity(full)
    assert f"{data}_packed_manifest.json: --is-instruction-dataset --neat-pack" in short.describe_sources()[1]


def test_flags_that_are_given_or_differ_are_not_read_from_manifests(tmp_path: Path, data: Path) -> None:
    words = [*without(RUN, *RECORDED, f"--seq-length {SEQ_LENGTH}"), "--data-path", str(data)]
    given = parse_pretrain_arguments([*words, "--seq-length", "64", "--reset-attention-mask"], 1).data
    assert given.seq_length == 64 and not given.reset_position_ids and given.neat_pack, "refused when files are opened"
    plain = write_files(tmp_path / "plain", neat=False)
    both = parse_pretrain_arguments([*words, str(plain)], 1).data
    assert both.is_instruction_dataset and not both.neat_pack and both.seq_length == SEQ_LENGTH
    with pytest.raises(ConfigError, match="--seq-length is required"):
        parse_pretrain_arguments([*words, str(tmp_path / "no_files")], 1)
