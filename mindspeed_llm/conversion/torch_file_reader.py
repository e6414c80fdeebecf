"""Read what torch.save wrote, without torch.load and without unpickling.

A file of torch.save is a zip archive whose members are stored as they are:

    NAME/data.pkl     the saved value; each tensor is a call of torch._utils._rebuild_tensor_v2 on a storage's number
    NAME/data/0, …    the bytes of the storages
    NAME/byteorder    little

A shard of a distributed checkpoint (`.distcp`) is a row of such archives, each with one tensor. `TorchFile` reads the
directory and the pickle; the bytes of a tensor are read when they are asked for, straight into its memory.

torch.load with weights_only imports nothing unknown, but it makes objects of what a file says. Here every
offset, size and stride is checked against the archive before a byte is read.
"""

from __future__ import annotations

import io
import math
import struct
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import torch

from mindspeed_llm.conversion.checkpoint_index import DTYPES
from mindspeed_llm.conversion.pickle_reader import (
    OrderedItems,
    PersistentReference,
    PickledName,
    PickledObject,
    PickleError,
    read_pickle,
)
from mindspeed_llm.storage.safe_open import regular_file_opener
from mindspeed_llm.storage.uncached_file import FileSection

_V2, _V3 = PickledName("torch._utils", "_rebuild_tensor_v2"), PickledName("torch._utils", "_rebuild_tensor_v3")
_NPU = PickledName("torch_npu.utils.storage", "_rebuild_npu_tensor")
_PARAMETER = PickledName("torch._utils", "_rebuild_parameter")
_SIZE = PickledName("torch", "Size")
_UNTYPED = PickledName("torch.storage", "UntypedStorage")
_STORAGES: dict[PickledName, torch.dtype] = {
    PickledName("torch", f"{kind}Storage"): dtype
    for kind, dtype in {
        "Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16,
        "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
        "Bool": torch.bool,
    }.items()
}  # fmt: skip
# What describes values and tensors. Others may be allowed by a caller, and are left as descriptions.
ALLOWED: frozenset[PickledName] = frozenset(
    {_V2, _V3, _NPU, _PARAMETER, _SIZE, _UNTYPED, PickledName("collections", "OrderedDict"), *_STORAGES, *DTYPES}
)
# What Megatron saves beside the weights: its command line, enumerations of it and random states. Nothing is made of it.
OF_MEGATRON: frozenset[PickledName] = frozenset(
    {
        PickledName("argparse", "Namespace"),
        PickledName("types", "SimpleNamespace"),
        PickledName("signal", "Signals"),
        PickledName("_io", "BytesIO"),
        PickledName("_codecs", "encode"),
        PickledName("torch", "device"),
        PickledName("__builtin__", "set"),
        PickledName("pathlib", "PosixPath"),
        PickledName("pathlib._local", "PosixPath"),
        PickledName("numpy", "ndarray"),
        PickledName("numpy", "dtype"),
        PickledName("numpy.dtypes", "UInt32DType"),
        *(
            PickledName(f"numpy.{core}.multiarray", name)
            for core in ("core", "_core")
            for name in ("_reconstruct", "scalar")
        ),
        PickledName("megatron.core.enums", "ModelType"),
        PickledName("megatron.core.optimizer.optimizer_config", "OptimizerConfig"),
        *(PickledName("megatron.core.transformer.enums", name) for name in ("AttnBackend", "CudaGraphScope")),
        *(
            PickledName("megatron.core.rerun_state_machine", name)
            for name in ("RerunDiagnostic", "RerunMode", "RerunState")
        ),
    }
)
LARGEST_PICKLE = 1 << 28  # bytes
_MOST_MEMBERS = 1 << 20
_MOST = 1 << 62
_DEEPEST, _MOST_VALUES = 50, 100_000
_SHARED = 64 << 20  # bytes that tensors of one value may take beyond the length of the file


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file, not read yet.

    Attributes:
        path: of the file.
        start: of the storage in the file, in bytes.
        elements: of the storage.
        dtype: of the tensor.
        shape, stride, offset: of the tensor in the storage, in elements; checked to lie within it.
    """

    path: Path
    start: int
    elements: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    def read(self) -> torch.Tensor:
        """The tensor, in memory of its own.

        Raises:
            OSError: the file cannot be read, or has become shorter.
        """
        if self._is_contiguous():
            count = math.prod(self.shape)
            return self._elements(self.offset, count).view(self.shape)
        return self._elements(0, self.elements).as_strided(self.shape, self.stride, self.offset).contiguous()

    @property
    def bytes_to_read(self) -> int:
        """The memory that `read` takes at first."""
        return (math.prod(self.shape) if self._is_contiguous() else self.elements) * self.dtype.itemsize

    def _is_contiguous(self) -> bool:
        expected = 1
        for size, step in zip(reversed(self.shape), reversed(self.stride), strict=True):
            if size != 1 and step != expected:
                return 0 in self.shape
            expected *= size
        return True

    def _elements(self, first: int, count: int) -> torch.Tensor:
        values = torch.empty(count, dtype=self.dtype)
        if not count:
            return values
        view = values.view(torch.uint8).numpy().data
        with open(self.path, "rb", buffering=0, opener=regular_file_opener) as file:
            file.seek(self.start + first * self.dtype.itemsize)
            while view:
                read = file.readinto(view)
                if not read:
                    raise OSError(f"{self.path}: shorter than it was")
                view = view[read:]
        return values


class TorchFile:
    """The value in a file of torch.save.

    Args:
        path: of the file.
        start, length: of the archive in it, in bytes; all of the file by default.
        also_allowed: names that may appear besides those of tensors and plain values.

    Attributes:
        content: the value as `read_pickle` gives it.

    Raises:
        PickleError: the archive is damaged or crafted, or not written by torch.save.
        ForbiddenNameError: it names something that is not allowed.
        OSError: the file cannot be read.
    """

    def __init__(
        self, path: Path, start: int = 0, length: int | None = None, also_allowed: frozenset[PickledName] = frozenset()
    ) -> None:
        self.path = path
        with open(path, "rb", buffering=0, opener=regular_file_opener) as file:
            whole = file.seek(0, io.SEEK_END)
            length = whole - start if length is None else length
            if start + length > whole:
                raise PickleError(f"it is shorter than {start + length:,} bytes")
            part = FileSection(file, start, length)
            self._length = length
            self._members = _directory(part)
            self._starts: dict[str, int] = {}
            self._part_start = start
            self._byte_order(part)
            pickled = self._member(part, "data.pkl", LARGEST_PICKLE)
            self.content = read_pickle(pickled, lambda name: name in ALLOWED or name in also_allowed)
            for name, member in self._members.items():
                if name.startswith("data/"):
                    self._starts[name] = start + _start_of(part, member)

    def _member(self, part: FileSection, name: str, most: int) -> bytes:
        member = self._members.get(name)
        if member is None or member.file_size > most:
            raise PickleError(f"it has no {name} of an acceptable size, so torch.save did not write it")
        part.seek(_start_of(part, member))
        content = part.read(member.file_size)
        if len(content) != member.file_size:
            raise PickleError("it ends early")
        return content

    def _byte_order(self, part: FileSection) -> None:
        order = self._member(part, "byteorder", 16).decode("ascii", "replace") if "byteorder" in self._members else ""
        if order not in ("", sys.byteorder):
            raise PickleError(f"its numbers are in the byte order {order!a}, this machine's in {sys.byteorder!a}")

    def value(self, described: Any) -> Any:
        """Plain values of a part of the content: dict, list, tuple, numbers, text, dtypes, sizes; tensors are read.

        Raises:
            PickleError: it contains something else, or nests too deeply.
        """
        return _Values(self.tensor, self._length + _SHARED).of(described, 0)

    def is_tensor(self, described: Any) -> bool:
        """Whether a part of the content describes a tensor."""
        return type(described) is PickledObject and described.kind in (_V2, _V3, _NPU, _PARAMETER)

    def tensor(self, made: PickledObject) -> StoredTensor:
        """A tensor of the content.

        Raises:
            PickleError: it is none, or does not lie within its storage.
        """
        if type(made) is PickledObject and made.kind == _PARAMETER and made.arguments:
            made = made.arguments[0]
        if not self.is_tensor(made) or made.kind == _PARAMETER or len(made.arguments) < 6:
            raise PickleError("it has something else where a tensor belongs")
        storage, offset, shape, stride = made.arguments[:4]
        if type(shape) is PickledObject and shape.kind == _SIZE and len(shape.arguments) == 1:
            shape = shape.arguments[0]
        shape, stride, (offset,) = _numbers(shape), _numbers(stride), _numbers((offset,))
        dtype, key, elements = self._storage(storage, made.kind, made.arguments[6:])
        if len(shape) != len(stride):
            raise PickleError("it has a tensor with other dimensions than strides")
        last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
        if (0 not in shape and last >= elements) or offset > elements or math.prod(shape) > elements:
            raise PickleError("it has a tensor that reaches beyond its storage")
        return StoredTensor(self.path, self._starts[key], elements, dtype, shape, stride, offset)

    def _storage(self, reference: Any, rebuilt_by: PickledName, extra: tuple[Any, ...]) -> tuple[torch.dtype, str, int]:
        """dtype, member and elements of the storage that a tensor lies in.

        Args:
            reference: what the pickle says of the storage.
            rebuilt_by: the function that torch would call.
            extra: its arguments after the sixth: of V3 the dtype, of the NPU's whether the layout is the plain one.
        """
        identifier = reference.identifier if type(reference) is PersistentReference else ()
        if type(identifier) is not tuple or len(identifier) != 5 or identifier[0] != "storage":
            raise PickleError("it has a tensor without a storage")
        _, kind, number, _, elements = identifier
        dtype = None
        if rebuilt_by == _V3 and len(extra) == 1 and kind == _UNTYPED and type(extra[0]) is PickledName:
            dtype = DTYPES.get(extra[0])
        elif (
            rebuilt_by != _V3
            and type(kind) is PickledName
            and all(rebuilt_by == _NPU and type(e) is bool for e in extra)
        ):
            dtype = _STORAGES.get(kind)
        if dtype is None:
            raise PickleError("it has a tensor of an unknown dtype or layout")
        key = f"data/{number}" if type(number) is str else ""
        if key not in self._starts:
            raise PickleError("it has a tensor whose storage is missing")
        (count,) = _numbers((elements,))
        if rebuilt_by == _V3:  # counted in bytes
            count //= dtype.itemsize
        if count * dtype.itemsize > self._members[key].file_size:
            raise PickleError("it has a storage that is shorter than its tensors")
        return dtype, key, count


def _numbers(value: Any) -> tuple[int, ...]:
    if type(value) is not tuple or len(value) > 64 or any(type(n) is not int or not 0 <= n < _MOST for n in value):
        raise PickleError("it has something else where sizes belong")
    return value


class _Values:
    """Turns descriptions into values, at most `_MOST_VALUES` of them: what is shared is counted each time.

    Args:
        tensor: finds a tensor in the file.
        most: bytes of all tensors. Views of one storage are read one by one, so a small file could fill any memory.
    """

    def __init__(self, tensor: Callable[[PickledObject], StoredTensor], most: int) -> None:
        self._tensor, self._left, self._bytes_left = tensor, _MOST_VALUES, most

    def of(self, described: Any, depth: int) -> Any:
        self._left -= 1
        if depth > _DEEPEST or self._left < 0:
            raise PickleError("it nests too deeply")
        kind = type(described)
        if described is None or kind in (bool, int, float, str, bytes):
            return described
        if kind in (dict, OrderedItems):
            return {self._key(key): self.of(value, depth + 1) for key, value in described.items()}
        if kind in (list, tuple):
            return kind(self.of(value, depth + 1) for value in described)
        if kind is PickledName and described in DTYPES:
            return DTYPES[described]
        if kind is PickledObject and described.kind == _SIZE and len(described.arguments) == 1:
            return torch.Size(_numbers(described.arguments[0]))
        if kind is PickledObject:
            stored = self._tensor(described)
            self._bytes_left -= stored.bytes_to_read
            if self._bytes_left < 0:
                raise PickleError("its tensors share storages so often that they need more memory than the file has")
            return stored.read()
        raise PickleError("it has something else where plain values belong")

    @staticmethod
    def _key(key: Any) -> Any:
        if type(key) not in (str, int):
            raise PickleError("it has a key that is neither text nor a number")
        return key


def _directory(part: FileSection) -> dict[str, zipfile.ZipInfo]:
    """The members of an archive by their name without its first folder."""
    try:
        with zipfile.ZipFile(cast(IO[bytes], part)) as archive:
            listed = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OverflowError, EOFError, struct.error) as error:
        raise PickleError(f"it is no archive that torch.save wrote ({str(error)[:100]})") from None
    members: dict[str, zipfile.ZipInfo] = {}
    for member in listed[: _MOST_MEMBERS + 1]:
        _, _, name = member.filename.partition("/")
        stored = member.compress_type == zipfile.ZIP_STORED and member.compress_size == member.file_size
        if not stored or member.flag_bits & 1 or name in members or len(members) == _MOST_MEMBERS:
            raise PickleError("it is an archive that torch.save did not write: compressed, or with a member twice")
        members[name] = member
    return members


def _start_of(part: FileSection, member: zipfile.ZipInfo) -> int:
    """Where the bytes of a member begin in its archive; all of them lie in it."""
    at = member.header_offset
    if not 0 <= at <= part.length - 30:
        raise PickleError("it is an archive with a member that lies outside")
    part.seek(at)
    header = part.read(30)
    if len(header) != 30 or header[:4] != b"PK\3\4":
        raise PickleError("it is an archive with a damaged member")
    start = at + 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    if start + member.file_size > part.length:
        raise PickleError("it is an archive with a member that reaches beyond its end")
    return start
