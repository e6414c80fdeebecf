"""Read files of torch.save without torch.load and without unpickling.

A file of torch.save is a zip archive with uncompressed members:

    NAME/data.pkl     the saved value; a tensor is a call of torch._utils._rebuild_tensor_v2 on a numbered storage
    NAME/data/0, …    the bytes of the storages
    NAME/byteorder    little

A shard of a distributed checkpoint (`.distcp`) is a sequence of such archives, each with one tensor. `TorchFile` reads
the zip directory and the pickle. The bytes of a tensor are read on request, directly into its memory.

torch.load with weights_only imports no unknown names, but it builds tensors from the unchecked numbers in a file. Here
every offset, size and stride is checked against the archive before the data is read.
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
# Names that describe values and tensors. A caller may allow others, which remain descriptions.
ALLOWED: frozenset[PickledName] = frozenset(
    {_V2, _V3, _NPU, _PARAMETER, _SIZE, _UNTYPED, PickledName("collections", "OrderedDict"), *_STORAGES, *DTYPES}
)
# Names in what Megatron saves beside the weights: arguments, enumerations and RNG states. Nothing is built from them.
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
_MAX_MEMBERS = 1 << 20
_MAX_NUMBER = 1 << 62  # far above the sizes and offsets in any file
_MAX_DEPTH, _MAX_VALUES = 50, 100_000
_SHARED = 64 << 20  # bytes that the tensors of one value may need beyond the length of the file, for shared storages


@dataclass(frozen=True)
class StoredTensor:
    """Tensor in a file that has not been read yet.

    Attributes:
        path: file that contains it.
        start: position of its storage in the file in bytes.
        elements: number of elements of the storage.
        dtype: dtype of the tensor.
        shape: shape of the tensor.
        stride: stride of each dimension in the storage, in elements.
        offset: offset of the first element in the storage, in elements. The tensor is checked to lie in the storage.
    """

    path: Path
    start: int
    elements: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    def read(self) -> torch.Tensor:
        """Read the tensor.

        Returns:
            Contiguous tensor [*shape] that shares no memory.

        Raises:
            OSError: the file cannot be read, or has become shorter.
        """
        # A storage may be much larger than one contiguous tensor in it. Other tensors are spread over the storage.
        if self._is_contiguous():
            count = math.prod(self.shape)
            return self._elements(self.offset, count).view(self.shape)
        return self._elements(0, self.elements).as_strided(self.shape, self.stride, self.offset).contiguous()

    @property
    def bytes_to_read(self) -> int:
        """Memory in bytes that `read` needs at first."""
        return (math.prod(self.shape) if self._is_contiguous() else self.elements) * self.dtype.itemsize

    def _is_contiguous(self) -> bool:
        """Return whether the elements are stored without gaps in row-major order, or there are none."""
        expected = 1
        for size, step in zip(reversed(self.shape), reversed(self.stride), strict=True):
            # The stride of a dimension of size 1 is arbitrary, in torch too.
            if size != 1 and step != expected:
                return 0 in self.shape
            expected *= size
        return True

    def _elements(self, first: int, count: int) -> torch.Tensor:
        """Read `count` elements of the storage, from element `first`, as [count]."""
        values = torch.empty(count, dtype=self.dtype)
        if not count:
            return values
        view = values.view(torch.uint8).numpy().data
        with open(self.path, "rb", buffering=0, opener=regular_file_opener) as file:
            file.seek(self.start + first * self.dtype.itemsize)
            # An unbuffered read may return less than requested; Linux reads at most 2 GiB at a time.
            while view:
                count_read = file.readinto(view)
                if not count_read:
                    raise OSError(f"{self.path}: the file has become shorter")
                view = view[count_read:]
        return values


class TorchFile:
    """Saved value in a file of torch.save.

    Args:
        path: the file.
        start: position of the archive in the file in bytes.
        length: length of the archive in bytes; by default up to the end of the file.
        also_allowed: names that may appear besides those of tensors and plain values.

    Attributes:
        path: the file.
        content: the value as `read_pickle` returns it.

    Raises:
        PickleError: the archive is damaged or crafted, or torch.save did not write it.
        ForbiddenNameError: the pickle contains a name that is not allowed.
        OSError: the file cannot be read.
    """

    def __init__(
        self, path: Path, start: int = 0, length: int | None = None, also_allowed: frozenset[PickledName] = frozenset()
    ) -> None:
        self.path = path
        with open(path, "rb", buffering=0, opener=regular_file_opener) as file:
            file_size = file.seek(0, io.SEEK_END)
            length = file_size - start if length is None else length
            if start + length > file_size:
                raise PickleError(f"it is shorter than {start + length:,} bytes")
            part = FileSection(file, start, length)
            self._length = length
            self._members = _directory(part)
            self._starts: dict[str, int] = {}
            self._part_start = start
            self._check_byte_order(part)
            pickled = self._member(part, "data.pkl", LARGEST_PICKLE)
            self.content = read_pickle(pickled, lambda name: name in ALLOWED or name in also_allowed)
            for name, member in self._members.items():
                if name.startswith("data/"):
                    self._starts[name] = start + _start_of(part, member)

    def _member(self, part: FileSection, name: str, max_size: int) -> bytes:
        """Read a member of the archive that has at most `max_size` bytes."""
        member = self._members.get(name)
        if member is None or member.file_size > max_size:
            raise PickleError(f"it has no {name} of an acceptable size, so torch.save did not write it")
        part.seek(_start_of(part, member))
        content = part.read(member.file_size)
        if len(content) != member.file_size:
            raise PickleError("it ends early")
        return content

    def _check_byte_order(self, part: FileSection) -> None:
        """Refuse data in another byte order than that of this machine; older files do not specify any."""
        order = self._member(part, "byteorder", 16).decode("ascii", "replace") if "byteorder" in self._members else ""
        if order not in ("", sys.byteorder):
            raise PickleError(f"its byte order is {order!a}, that of this machine is {sys.byteorder!a}")

    def value(self, described: Any) -> Any:
        """Convert a part of the content into plain values, and read its tensors.

        Args:
            described: a part of `content`.

        Returns:
            dict, list, tuple, number, text, dtype, size or tensor.

        Raises:
            PickleError: it contains another type of value, is nested too deeply or needs too much memory.
        """
        return _Values(self.tensor, self._length + _SHARED).convert(described, 0)

    def is_tensor(self, described: Any) -> bool:
        """Return whether a part of the content describes a tensor."""
        return type(described) is PickledObject and described.kind in (_V2, _V3, _NPU, _PARAMETER)

    def tensor(self, described: PickledObject) -> StoredTensor:
        """Return a tensor of the content, without reading its data.

        Args:
            described: a part of `content` that describes a tensor or a parameter.

        Raises:
            PickleError: it is not a valid tensor, does not lie in its storage, or has more elements than its storage
                (an expanded tensor with stride 0).
        """
        if type(described) is PickledObject and described.kind == _PARAMETER and described.arguments:
            described = described.arguments[0]
        if not self.is_tensor(described) or described.kind == _PARAMETER or len(described.arguments) < 6:
            raise PickleError("it has another value where a tensor is expected")
        storage, offset, shape, stride = described.arguments[:4]
        if type(shape) is PickledObject and shape.kind == _SIZE and len(shape.arguments) == 1:
            shape = shape.arguments[0]
        shape, stride, (offset,) = _numbers(shape), _numbers(stride), _numbers((offset,))
        dtype, key, elements = self._storage(storage, described.kind, described.arguments[6:])
        if len(shape) != len(stride):
            raise PickleError("it has a tensor with different numbers of dimensions and strides")
        # The index of the last element in the storage. Overlapping dimensions (stride 0) are refused by the product: a
        # small storage could otherwise describe a tensor that fills the memory.
        last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
        if (0 not in shape and last >= elements) or offset > elements or math.prod(shape) > elements:
            raise PickleError("it has a tensor that extends beyond its storage")
        return StoredTensor(self.path, self._starts[key], elements, dtype, shape, stride, offset)

    def _storage(self, reference: Any, rebuilt_by: PickledName, extra: tuple[Any, ...]) -> tuple[torch.dtype, str, int]:
        """Return dtype, name of the archive member and number of elements of the storage of a tensor.

        Args:
            reference: reference to the storage in the pickle.
            rebuilt_by: function that torch would call.
            extra: its arguments after the sixth: the dtype for V3; for NPU tensors whether the layout is the default.
        """
        identifier = reference.identifier if type(reference) is PersistentReference else ()
        if type(identifier) is not tuple or len(identifier) != 5 or identifier[0] != "storage":
            raise PickleError("it has a tensor without a storage")
        # torch saves ("storage", type, number of the storage, device, elements). The device does not matter here.
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
        # V3 uses an untyped storage, whose length is in bytes.
        if rebuilt_by == _V3:
            count //= dtype.itemsize
        if count * dtype.itemsize > self._members[key].file_size:
            raise PickleError("it has a storage with fewer bytes than the pickle specifies")
        return dtype, key, count


def _numbers(value: Any) -> tuple[int, ...]:
    """Return a tuple of numbers that are not negative: a shape, strides or an offset."""
    if (
        type(value) is not tuple
        or len(value) > 64
        or any(type(n) is not int or not 0 <= n < _MAX_NUMBER for n in value)
    ):
        raise PickleError("it has another value where sizes are expected")
    return value


class _Values:
    """Converter from descriptions to values.

    Args:
        tensor: returns the stored tensor of a description.
        max_bytes: maximum memory of all tensors in bytes. Views of one storage are read separately, so that a small
            file could need any amount of memory.
    """

    def __init__(self, tensor: Callable[[PickledObject], StoredTensor], max_bytes: int) -> None:
        # Shared parts count each time they appear: lists that contain one list twice double the values at each level.
        self._tensor, self._left, self._bytes_left = tensor, _MAX_VALUES, max_bytes

    def convert(self, described: Any, depth: int) -> Any:
        """Convert a description at a nesting depth; its parts are converted first."""
        self._left -= 1
        # A container may contain itself, so depth and number are limited.
        if depth > _MAX_DEPTH or self._left < 0:
            raise PickleError("it is nested too deeply or has too many values")
        kind = type(described)
        if described is None or kind in (bool, int, float, str, bytes):
            return described
        if kind in (dict, OrderedItems):
            return {self._key(key): self.convert(value, depth + 1) for key, value in described.items()}
        if kind in (list, tuple):
            return kind(self.convert(value, depth + 1) for value in described)
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
        raise PickleError("it has another value where plain values are expected")

    @staticmethod
    def _key(key: Any) -> Any:
        if type(key) not in (str, int):
            raise PickleError("it has a key that is neither text nor a number")
        return key


def _directory(part: FileSection) -> dict[str, zipfile.ZipInfo]:
    """Return the members of an archive by their names without the first directory."""
    try:
        with zipfile.ZipFile(cast(IO[bytes], part)) as archive:
            listed = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OverflowError, EOFError, struct.error) as error:
        raise PickleError(f"it is not an archive that torch.save wrote ({str(error)[:100]})") from None
    members: dict[str, zipfile.ZipInfo] = {}
    # Only uncompressed members: then the bytes of a tensor are a section of the file, and no member can be larger in
    # memory than on the disk.
    for member in listed[: _MAX_MEMBERS + 1]:
        _, _, name = member.filename.partition("/")
        stored = member.compress_type == zipfile.ZIP_STORED and member.compress_size == member.file_size
        if not stored or member.flag_bits & 1 or name in members or len(members) == _MAX_MEMBERS:
            raise PickleError(
                "it is an archive that torch.save did not write: compressed, with duplicate members or too many of them"
            )
        members[name] = member
    return members


def _start_of(part: FileSection, member: zipfile.ZipInfo) -> int:
    """Return the position of a member's data in the archive in bytes; all of its data is inside the archive."""
    # zipfile gives the position of the local header only. Name and extra field there may have other lengths than in the
    # directory, because torch.save aligns the data with them.
    at = member.header_offset
    if not 0 <= at <= part.length - 30:
        raise PickleError("it is an archive with a member outside of it")
    part.seek(at)
    header = part.read(30)
    if len(header) != 30 or header[:4] != b"PK\3\4":
        raise PickleError("it is an archive with a damaged member")
    start = at + 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    if start + member.file_size > part.length:
        raise PickleError("it is an archive with a member that extends beyond its end")
    return start
