"""Weights of a Hugging Face folder: safetensors in one file or several with an index, as a stream."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from mindspeed_llm.conversion.tensor_catalogue import CatalogueTensor, TensorCatalogue
from mindspeed_llm.conversion.tensor_mapping import join_parts, shard
from mindspeed_llm.conversion.tensor_streams import as_bytes
from mindspeed_llm.errors import CheckpointError
from mindspeed_llm.storage.uncached_file import StreamedFile, drop_cached_pages

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
SHARD_BYTES = 5 * 10**9
# What a folder holds besides weights and what is copied with a model. Nothing that could be run is on the list.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
COMPANIONS = ("config.json", "generation_config.json", *TOKENIZER_FILES)
PAGE = 4096  # bytes; no system has smaller pages
MOST_NAMED = 40  # of a list of tensors in one message


class HuggingFaceWeights:
    """The tensors of a folder, read one at a time.

    Args:
        folder: where they lie.
        once: each tensor is wanted once and by this process alone, so that what was read need not stay in the file
            cache; the ranks of a machine, who read the same files, leave it there for each other.

    Attributes:
        folder: where they lie.
        shapes, dtypes: of every tensor.

    Raises:
        CheckpointError: no safetensors, a damaged file or index, or an index that names a file outside the folder.
    """

    def __init__(self, folder: Path, once: bool = False) -> None:
        self.folder, self._once = folder, once
        self._file_of = _files(folder)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, torch.dtype] = {}
        problems = []
        for file in sorted(set(self._file_of.values())):
            for name, shape, dtype in _header(folder / file):
                if self._file_of.get(name) not in (file, None):
                    problems.append(f"{name} lies in {file} and, by {INDEX}, in {self._file_of[name]}")
                if dtype not in DTYPES:
                    problems.append(f"{name} in {file} has the type {dtype}; there are {', '.join(DTYPES)}")
                self._file_of[name], self.shapes[name] = file, shape
                self.dtypes[name] = DTYPES.get(dtype, torch.float32)
        problems += [f"{name} is not in {file}" for name, file in self._file_of.items() if name not in self.shapes]
        raise_problems(folder, problems)

    def check(self, catalogue: TensorCatalogue) -> None:
        """Compare with what config.json asks for.

        Raises:
            CheckpointError: tensors that are missing, that no table knows, or that have another shape; all of them.
        """
        wanted = catalogue.hugging_face_shapes()
        problems = [f"missing: {name} {list(shape)}" for name, shape in wanted.items() if name not in self.shapes]
        for name, shape in self.shapes.items():
            if name in wanted and shape != wanted[name]:
                problems.append(f"{name} has the shape {list(shape)}; config.json means {list(wanted[name])}")
            elif name not in wanted and not self._may_be_left(name, catalogue):
                problems.append(f"not of this model: {name} {list(shape)}")
        raise_problems(self.folder, problems)

    def _may_be_left(self, name: str, catalogue: TensorCatalogue) -> bool:
        family = catalogue.config.family
        (output, _), (embedding, _) = family.output.parts[0], family.embedding.parts[0]
        if catalogue.tied and name == output:
            return embedding in self.shapes and torch.equal(self.read(name), self.read(embedding))
        return name.endswith(family.unused)

    def read(self, name: str) -> torch.Tensor:
        """One whole tensor. Its file is mapped for as long as the tensor lives."""
        if self._once:
            drop_cached_pages(self.folder / self._file_of[name])  # what was read before
        with safe_open(self.folder / self._file_of[name], framework="pt") as file:
            tensor = file.get_tensor(name)
        if self._once:  # a mapped page is read when it is touched: here, not later
            tensor.view(torch.uint8).flatten()[::PAGE].sum()
        return tensor

    def read_part(self, name: str, dimension: int, rank: int, ranks: int) -> torch.Tensor:
        """Part `rank` of `ranks` along a dimension; nothing else is read from the disk."""
        extent = self.shapes[name][dimension]
        part = slice(rank * extent // ranks, (rank + 1) * extent // ranks)
        with safe_open(self.folder / self._file_of[name], framework="pt") as file:
            rows = file.get_slice(name)
            return rows[part] if dimension == 0 else rows[:, part]

    def full_tensor(self, tensor: CatalogueTensor) -> torch.Tensor:
        """A whole tensor of megatron-core."""
        return join_parts(tensor, [self.read(name) for name, _ in tensor.parts])

    def shard(self, tensor: CatalogueTensor, rank: int, ranks: int, vocabulary_rows: int) -> torch.Tensor:
        """The part of one tensor-parallel rank, read from that part of the files where the cut allows it."""
        straight = tensor.split in ("rows", "columns") and (tensor.form != "qkv" or tensor.groups % ranks == 0)
        if not straight or ranks == 1:
            return shard(tensor, self.full_tensor(tensor), rank, ranks, vocabulary_rows)
        dimension = 1 if tensor.split == "columns" else 0
        parts = [self.read_part(name, dimension, rank, ranks) for name, _ in tensor.parts]
        if tensor.form != "qkv":
            return join_parts(tensor, parts)
        grouped = [part.unflatten(0, (tensor.groups // ranks, -1)) for part in parts]
        return torch.cat(grouped, dim=1).flatten(0, 1)


def _files(folder: Path) -> dict[str, str]:
    """Tensor → file, as far as the index says; for a single file its tensors are found in its header."""
    index = folder / INDEX
    if not index.is_file():
        if (folder / SINGLE).is_file():
            return {name: SINGLE for name, _, _ in _header(folder / SINGLE)}
        pickled = any(folder.glob("pytorch_model*.bin"))
        advice = "its .bin files are pickles, which are not read; save it as safetensors" if pickled else "give another"
        raise CheckpointError(f"{folder}: holds neither {SINGLE} nor {INDEX}; {advice}")
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        entries = [(str(name), str(file)) for name, file in weight_map.items()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{index}: cannot be read ({repr(error)[:200]}); fetch the file again") from error
    outside = sorted({file for _, file in entries if Path(file).name != file or not file.endswith(".safetensors")})
    raise_problems(index, [f"{file!r} is not the name of a .safetensors file in this folder" for file in outside])
    missing = sorted({file for _, file in entries if not (folder / file).is_file()})
    raise_problems(folder, [f"{file} is not there" for file in missing])
    return dict(entries)


def _header(path: Path) -> Iterator[tuple[str, tuple[int, ...], str]]:
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  (no mapping)
                rows = file.get_slice(name)
                yield name, tuple(rows.get_shape()), str(rows.get_dtype())
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); fetch the file again") from error


def raise_problems(where: Path, problems: list[str]) -> None:
    """Raise all problems as one CheckpointError; none, nothing."""
    if not problems:
        return
    shown = problems[:MOST_NAMED]
    if len(problems) > len(shown):
        shown.append(f"and {len(problems) - len(shown)} more")
    raise CheckpointError("\n".join(f"{where}: {problem}" for problem in shown))


class HuggingFaceWriter:
    """Writes a folder of safetensors, one tensor at a time and in any order.

    The files are laid out before the first tensor comes, so that nothing is held back in memory.

    Args:
        folder: an existing folder.
        shapes: of every tensor, in the order of the files.
        dtype: of all of them.
        shard_bytes: most bytes of one file, unless a single tensor has more.
    """

    def __init__(
        self,
        folder: Path,
        shapes: Mapping[str, tuple[int, ...]],
        dtype: torch.dtype,
        shard_bytes: int = SHARD_BYTES,
    ) -> None:
        self.folder, self.dtype = folder, dtype
        self._missing = dict(shapes)
        self._place: dict[str, tuple[str, int]] = {}
        self._streams: dict[str, io.BufferedWriter[Any]] = {}
        self.total = 0
        shards: list[dict[str, int]] = [{}]
        for name, shape in shapes.items():
            size = dtype.itemsize
            for extent in shape:
                size *= extent
            if shards[-1] and sum(shards[-1].values()) + size > shard_bytes:
                shards.append({})
            shards[-1][name] = size
            self.total += size
        for number, sizes in enumerate(shards, 1):
            file = SINGLE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            self._lay_out(file, sizes, shapes)

    def _lay_out(self, file: str, sizes: Mapping[str, int], shapes: Mapping[str, tuple[int, ...]]) -> None:
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name, size in sizes.items():
            header[name] = {"dtype": NAMES[self.dtype], "shape": list(shapes[name]), "data_offsets": [end, end + size]}
            end += size
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        stream = io.BufferedWriter(StreamedFile(self.folder / file))
        stream.write(len(text).to_bytes(8, "little") + text)
        self._streams[file] = stream
        start = 8 + len(text)
        for name, size in sizes.items():
            self._place[name] = (file, start)
            start += size

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Put one tensor into its place."""
        assert tuple(tensor.shape) == self._missing.pop(name), name
        file, start = self._place[name]
        self._streams[file].seek(start)
        self._streams[file].write(as_bytes(tensor.to(self.dtype)))

    def finish(self) -> None:
        """Put everything on the disk and write the index, if there are several files."""
        assert not self._missing, self._missing
        self.close()
        if len(self._streams) > 1:
            weight_map = {name: file for name, (file, _) in self._place.items()}
            text = json.dumps({"metadata": {"total_size": self.total}, "weight_map": weight_map}, indent=2)
            (self.folder / INDEX).write_text(text + "\n", encoding="utf-8")

    def close(self) -> None:
        """Put all files on the disk and close them."""
        for stream in self._streams.values():
            stream.close()


def copy_model_assets(source: Path, target: Path) -> list[str]:
    """Copy config, tokenizer and generation settings; their names."""
    names = [name for name in COMPANIONS if (source / name).is_file()]
    for name in names:
        shutil.copyfile(source / name, target / name)
    return names
