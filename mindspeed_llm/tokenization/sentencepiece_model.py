"""Change one setting of a SentencePiece model, which is a protocol buffer, without the library protobuf."""

from __future__ import annotations

NORMALIZER_SPEC = 3  # field of ModelProto
ADD_DUMMY_PREFIX_FALSE = b"\x18\x00"  # field 3 of NormalizerSpec = false
LENGTH_DELIMITED = 2  # wire type of a field with its length before it
FIXED_SIZES = {1: 8, 5: 4}  # wire type → bytes


def without_added_space(content: bytes) -> bytes:
    """Return the model with normalizer_spec.add_dummy_prefix = false: the library adds no space before a text.

    Args:
        content: bytes of the model file.

    Raises:
        ValueError: `content` is not a protocol buffer.
    """
    # The complete specification is appended, with the changed setting at its end. Of several values the last one wins;
    # a reader that does not merge repeated messages, as the format requires, finds all settings in the last one.
    specification = b"".join(_fields(content, NORMALIZER_SPEC)) + ADD_DUMMY_PREFIX_FALSE
    key = NORMALIZER_SPEC << 3 | LENGTH_DELIMITED
    return content + bytes([key]) + _varint(len(specification)) + specification


def _fields(content: bytes, wanted: int) -> list[bytes]:
    """Return the values of the length-delimited field `wanted`.

    Raises:
        ValueError: `content` is not a protocol buffer.
    """
    found, position = [], 0
    while position < len(content):
        key, position = _read_varint(content, position)
        field, wire_type = key >> 3, key & 7
        if wire_type == LENGTH_DELIMITED:
            size, position = _read_varint(content, position)
            if field == wanted:
                found.append(content[position : position + size])
            position += size
        elif wire_type == 0:
            _, position = _read_varint(content, position)
        elif wire_type in FIXED_SIZES:
            position += FIXED_SIZES[wire_type]
        else:
            raise ValueError(f"unknown wire type {wire_type}")
    if position != len(content):
        raise ValueError("the file is truncated")
    return found


def _read_varint(content: bytes, position: int) -> tuple[int, int]:
    """Return the integer at `position`, and the position after it."""
    value = shift = 0
    while True:
        if position >= len(content) or shift > 63:
            raise ValueError("the file is truncated")
        byte = content[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if not byte & 0x80:
            return value, position


def _varint(value: int) -> bytes:
    """Return `value` with seven bits per byte, the lowest first."""
    written = bytearray()
    while value > 0x7F:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*written, value])
