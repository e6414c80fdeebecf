"""Read and write the weights of a Hugging Face folder: one safetensors file, or several with an index."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from mindspeed_llm.adapters import ADAPTER_WEIGHTS
from mindspeed_llm.conversion.tensor_catalogue import CatalogueTensor, TensorCatalogue
from mindspeed_llm.conversion.tensor_mapping import join_parts, shard
from mindspeed_llm.conversion.tensor_streams import as_bytes
from mindspeed_llm.errors import CheckpointError
from mindspeed_llm.families import ModelFamily
from mindspeed_llm.storage.uncached_file import StreamedFile, drop_cached_pages

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
# Name of the only file of weights → beginning of the names of the files that older versions wrote instead.
PICKLED = {SINGLE: "pytorch_model", ADAPTER_WEIGHTS: "adapter_model"}
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
SHARD_BYTES = 5 * 10**9
# The assets that are copied with a model. Python files of a model are deliberately not copied.
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
ASSET_FILES = ("config.json", "generation_config.json", *TOKENIZER_FILES)
PAGE = 4096  # bytes; no system has smaller pages
MAX_NAMED = 40  # maximum number of tensors that one error message lists


class HuggingFaceWeights:
    """Tensors of a Hugging Face folder, read one at a time.

    Args:
        folder: Hugging Face folder.
        once: whether each tensor is read once and only by this process, so that its pages are dropped from the file
            cache. The ranks of a machine read the same files and keep the pages for each other.
        single: name of the file if there is only one.

    Attributes:
        folder: Hugging Face folder.
        shapes: shape of each tensor, by its Hugging Face name.
        dtypes: dtype of each tensor, by its Hugging Face name.

    Raises:
        CheckpointError: there are no safetensors files, a file or the index is damaged, or the index names a file
            outside the folder.
    """

    def __init__(self, folder: Path, once: bool = False, single: str = SINGLE) -> None:
        self.folder, self._once = folder, once
        self._prefix = ""  # of names that the files do not have; see `check`
        self._file_of = _files(folder, single)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, torch.dtype] = {}
        problems = []
        for file in sorted(set(self._file_of.values())):
            for name, shape, dtype in _header(folder / file):
                if self._file_of.get(name) not in (file, None):
                    problems.append(f"{name} is in {file}, but the index specifies {self._file_of[name]}")
                if dtype not in DTYPES:
                    problems.append(f"{name} in {file} has the dtype {dtype}; supported are {', '.join(DTYPES)}")
                self._file_of[name], self.shapes[name] = file, shape
                self.dtypes[name] = DTYPES.get(dtype, torch.float32)
        problems += [f"{name} is not in {file}" for name, file in self._file_of.items() if name not in self.shapes]
        raise_problems(folder, problems)

    def check(self, catalogue: TensorCatalogue) -> None:
        """Check that the folder has exactly the tensors of the catalogue.

        Tensors of a folder that was saved without the output layer get the names that the catalogue has.

        Raises:
            CheckpointError: tensors are missing, unexpected or of another shape; one line for each of them.
        """
        self._add_prefix(catalogue.config.family)
        expected = catalogue.hugging_face_shapes()
        problems = [f"missing: {name} {list(shape)}" for name, shape in expected.items() if name not in self.shapes]
        for name, shape in self.shapes.items():
            if name in expected and shape != expected[name]:
                problems.append(
                    f"{name} has the shape {list(shape)}; {catalogue.required_by} requires {list(expected[name])}"
                )
            elif name not in expected and not self._is_ignorable(name, catalogue):
                problems.append(f"not of this model: {name} {list(shape)}")
        raise_problems(self.folder, problems)

    def _add_prefix(self, family: ModelFamily) -> None:
        """Complete the names of a folder that was saved without the prefix of its family; its files keep theirs."""
        prefix, (output, _) = family.optional_prefix, family.output.parts[0]
        if not prefix or any(name.startswith(prefix) for name in self.shapes):
            return
        names = {name: name if name == output else prefix + name for name in self.shapes}
        self.shapes = {names[name]: value for name, value in self.shapes.items()}
        self.dtypes = {names[name]: value for name, value in self.dtypes.items()}
        self._file_of = {names[name]: value for name, value in self._file_of.items()}
        self._prefix = prefix

    def _is_ignorable(self, name: str, catalogue: TensorCatalogue) -> bool:
        """Return whether a tensor that the catalogue does not contain can be left out without changing the model."""
        family = catalogue.config.family
        # Some folders of models with tied embeddings contain the output layer as well. An equal copy can be
        # left out; a different one is a weight that would be lost.
        (output, _), (embedding, _) = family.output.parts[0], family.embedding.parts[0]
        if catalogue.tied and name == output:
            return embedding in self.shapes and torch.equal(self.read(name), self.read(embedding))
        return name.endswith(family.unused)

    def read(self, name: str) -> torch.Tensor:
        """Read a full tensor.

        Returns:
            Tensor [*shapes[name]] in the stored dtype. The file stays memory-mapped as long as the tensor exists.
        """
        # Pages cannot be dropped while a tensor maps them, so those of earlier tensors are dropped here.
        if self._once:
            drop_cached_pages(self.folder / self._file_of[name])
        with safe_open(self.folder / self._file_of[name], framework="pt") as file:
            tensor = file.get_tensor(name.removeprefix(self._prefix))
        # A mapped page is read from the disk when it is first accessed. Accessing one byte of each page here moves the
        # reading into the thread that reads ahead.
        if self._once:
            tensor.view(torch.uint8).flatten()[::PAGE].sum()
        return tensor

    def read_part(self, name: str, dimension: int, rank: int, ranks: int) -> torch.Tensor:
        """Read part `rank` of `ranks` along a dimension; nothing else is read from the disk.

        Args:
            name: Hugging Face name of a tensor with the shape [rows, columns] or [rows].
            dimension: dimension that is divided, 0 or 1.
            rank: number of the part, from 0.
            ranks: number of parts.

        Returns:
            Tensor [rows / ranks, columns] or [rows, columns / ranks].
        """
        extent = self.shapes[name][dimension]
        part = slice(rank * extent // ranks, (rank + 1) * extent // ranks)
        with safe_open(self.folder / self._file_of[name], framework="pt") as file:
            rows = file.get_slice(name.removeprefix(self._prefix))
            return rows[part] if dimension == 0 else rows[:, part]

    def full_tensor(self, tensor: CatalogueTensor) -> torch.Tensor:
        """Read a full tensor of megatron-core.

        Returns:
            Tensor [*tensor.shape], joined from the Hugging Face tensors that it consists of.
        """
        return join_parts(tensor, [self.read(name) for name, _ in tensor.parts])

    def shard(self, tensor: CatalogueTensor, rank: int, ranks: int, vocabulary_rows: int) -> torch.Tensor:
        """Read the part of one tensor-parallel rank; only the bytes of that part are read where possible.

        Args:
            tensor: one of the catalogue.
            rank: tensor-parallel rank.
            ranks: tensor-parallel size.
            vocabulary_rows: rows of the padded vocabulary over all ranks.

        Returns:
            Tensor of the shape that `shard_shape` returns, such as [rows / ranks, columns].
        """
        # The vocabulary needs padding, and where the ranks do not divide the query groups the rows of a rank are not
        # contiguous in the files.
        divisible = tensor.split in ("rows", "columns") and (tensor.form != "qkv" or tensor.groups % ranks == 0)
        # Query, key and value of a rank are three sections of each row, so the tensor is read completely as well.
        if not divisible or tensor.form == "transposed_qkv" or ranks == 1:
            return shard(tensor, self.full_tensor(tensor), rank, ranks, vocabulary_rows)
        dimension = 1 if (tensor.split == "columns") != (tensor.form == "transposed") else 0
        parts = [self.read_part(name, dimension, rank, ranks) for name, _ in tensor.parts]
        if tensor.form != "qkv":
            return join_parts(tensor, parts)
        grouped = [part.unflatten(0, (tensor.groups // ranks, -1)) for part in parts]
        return torch.cat(grouped, dim=1).flatten(0, 1)


def _files(folder: Path, single: str) -> dict[str, str]:
    """Return tensor → file, from the index, or from the header if there is a single file."""
    index = folder / single.replace(".safetensors", ".safetensors.index.json")
    if not index.is_file():
        if (folder / single).is_file():
            return {name: single for name, _, _ in _header(folder / single)}
        pickled = any(folder.glob(f"{PICKLED[single]}*.bin"))
        advice = "its .bin files are pickles, which are not read; save it as safetensors" if pickled else "give another"
        raise CheckpointError(f"{folder}: holds neither {single} nor {index.name}; {advice}")
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        entries = [(str(name), str(file)) for name, file in weight_map.items()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{index}: cannot be read ({repr(error)[:200]}); fetch the file again") from error
    # The index could name any path; only files in the folder itself are opened.
    outside = sorted({file for _, file in entries if Path(file).name != file or not file.endswith(".safetensors")})
    raise_problems(index, [f"{file!r} is not the name of a .safetensors file in this folder" for file in outside])
    missing = sorted({file for _, file in entries if not (folder / file).is_file()})
    raise_problems(folder, [f"{file} is missing" for file in missing])
    return dict(entries)


def _header(path: Path) -> Iterator[tuple[str, tuple[int, ...], str]]:
    """Yield (name, shape, dtype name) of each tensor in a safetensors file."""
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  (no mapping)
                rows = file.get_slice(name)
                yield name, tuple(rows.get_shape()), str(rows.get_dtype())
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); fetch the file again") from error


def raise_problems(where: Path, problems: list[str]) -> None:
    """Raise one CheckpointError for all problems, if there are any.

    Args:
        where: file or folder that each line of the message begins with.
        problems: one text for each problem; the first MAX_NAMED are listed.

    Raises:
        CheckpointError: `problems` is not empty.
    """
    if not problems:
        return
    shown = problems[:MAX_NAMED]
    if len(problems) > len(shown):
        shown.append(f"and {len(problems) - len(shown)} more")
    raise CheckpointError("\n".join(f"{where}: {problem}" for problem in shown))


class HuggingFaceWriter:
    """Writer for a folder of safetensors files; it takes one tensor at a time, in any order.

    The headers, with the position of every tensor, are written first, so that no tensor has to wait in memory.

    Args:
        folder: existing directory.
        shapes: shape of each tensor, in the order in which the files store them.
        dtype: dtype of all tensors.
        shard_bytes: maximum size of the tensors in one file in bytes; a single larger tensor has a file of its own.
        single: name of the file if there is only one.

    Attributes:
        folder: the directory.
        dtype: dtype of all tensors.
        total: size of all tensors in bytes.
    """

    def __init__(
        self,
        folder: Path,
        shapes: Mapping[str, tuple[int, ...]],
        dtype: torch.dtype,
        shard_bytes: int = SHARD_BYTES,
        single: str = SINGLE,
    ) -> None:
        self.folder, self.dtype = folder, dtype
        self._missing = dict(shapes)
        self._positions: dict[str, tuple[str, int]] = {}
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
            file = single if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            self._write_header(file, sizes, shapes)

    def _write_header(self, file: str, sizes: Mapping[str, int], shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Open a file, write its header, and record the position of each tensor in bytes."""
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name, size in sizes.items():
            header[name] = {"dtype": NAMES[self.dtype], "shape": list(shapes[name]), "data_offsets": [end, end + size]}
            end += size
        text = json.dumps(header, separators=(",", ":")).encode()
        # As the safetensors library does it: the data begins at a multiple of 8 bytes, after spaces in the header.
        text += b" " * (-len(text) % 8)
        stream = io.BufferedWriter(StreamedFile(self.folder / file))
        stream.write(len(text).to_bytes(8, "little") + text)
        self._streams[file] = stream
        start = 8 + len(text)
        for name, size in sizes.items():
            self._positions[name] = (file, start)
            start += size

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Write one tensor at its position.

        Args:
            name: Hugging Face name.
            tensor: [*shapes[name]]; it is converted to the dtype of the folder.
        """
        assert tuple(tensor.shape) == self._missing.pop(name), name
        file, start = self._positions[name]
        self._streams[file].seek(start)
        self._streams[file].write(as_bytes(tensor.to(self.dtype)))

    def finish(self) -> None:
        """Flush all files to the disk, and write the index if there are several."""
        assert not self._missing, self._missing
        self.close()
        if len(self._streams) > 1:
            weight_map = {name: file for name, (file, _) in self._positions.items()}
            text = json.dumps({"metadata": {"total_size": self.total}, "weight_map": weight_map}, indent=2)
            (self.folder / INDEX).write_text(text + "\n", encoding="utf-8")

    def close(self) -> None:
        """Flush all files to the disk and close them."""
        for stream in self._streams.values():
            stream.close()


def copy_model_assets(source: Path, target: Path) -> list[str]:
    """Copy the assets of a model from one directory to another.

    Args:
        source: directory with a config.json.
        target: existing directory.

    Returns:
        Names of the copied files.
    """
    names = [name for name in ASSET_FILES if (source / name).is_file()]
    for name in names:
        shutil.copyfile(source / name, target / name)
    return names
