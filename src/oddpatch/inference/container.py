"""The files of an artifact: an ONNX or OpenVINO model that carries oddpatch's metadata and a hash of all of it.

ONNX is one file. Protocol buffers may be continued by appending, so the metadata and, as the last 85 bytes, the SHA-256
of what comes before are entries of `metadata_props` like any other: every ONNX tool reads the model and shows them.
OpenVINO's are two files, whose .xml holds the metadata in its `rt_info` and ends with a comment: the SHA-256 of what
comes before it, followed by the .bin.

The hash finds what was damaged or changed by accident. It is no signature: whoever changes a file can hash it again.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from oddpatch.errors import CheckpointError
from oddpatch.files import parse_json

#: Raised when older code could no longer read what is written.
FORMAT = 2
KEY, HASH_KEY = "oddpatch", "oddpatch.sha256"
#: Tags of protocol buffers: a field of bytes, `metadata_props` of a model, and key and value of its entries.
_BYTES, _METADATA, _ENTRY_KEY, _ENTRY_VALUE = 2, 14 << 3 | 2, 1 << 3 | 2, 2 << 3 | 2


def seal_onnx(model: bytes, metadata: dict[str, Any]) -> bytes:
    """An ONNX file of a serialised model and its metadata."""
    described = model + _entry(KEY, to_json(metadata))
    return described + _entry(HASH_KEY, hashlib.sha256(described).hexdigest())


def open_onnx(data: bytes, path: Path) -> dict[str, Any]:
    """The metadata of an ONNX file.

    Raises:
        CheckpointError: it has none, or was damaged or changed.
    """
    trailer = len(_entry(HASH_KEY, "0" * 64))
    entries = {key: value for key, value in _entries(data[:-trailer]) if key == KEY}
    if not entries:
        raise CheckpointError(f"{path} is no artifact of oddpatch, or is truncated: write one with oddpatch export RUN")
    _require_hash(data[-trailer:], _entry(HASH_KEY, hashlib.sha256(memoryview(data)[:-trailer]).hexdigest()), path)
    return _from_json(entries[KEY], path)


def seal_openvino(description: bytes, weights: bytes) -> bytes:
    """The .xml of a model whose `rt_info` holds the metadata, see `metadata_text`."""
    return description + _comment(description, weights)


def check_openvino(description: bytes, weights: bytes, path: Path) -> None:
    """Raise a `CheckpointError` if the .xml or .bin was damaged or changed."""
    length = len(_comment(b"", b""))
    _require_hash(description[-length:], _comment(description[:-length], weights), path)


def metadata_text(metadata: dict[str, Any]) -> str:
    """What OpenVINO's `rt_info` holds under `KEY`."""
    return to_json(metadata)


def read_metadata(text: str, path: Path) -> dict[str, Any]:
    """What `metadata_text` was given.

    Raises:
        CheckpointError: it is not that.
    """
    return _from_json(text, path)


def _comment(description: bytes, weights: bytes) -> bytes:
    digest = hashlib.sha256(description)
    digest.update(weights)
    return f"<!-- {HASH_KEY} {digest.hexdigest()} -->\n".encode()


def _require_hash(found: bytes, expected: bytes, path: Path) -> None:
    if found != expected:
        raise CheckpointError(f"{path} was truncated, damaged or changed (its SHA-256 differs): export the run again")


def to_json(metadata: dict[str, Any]) -> str:
    """Metadata as an artifact holds them."""
    return json.dumps(metadata, allow_nan=False)


def _from_json(text: str, path: Path) -> dict[str, Any]:
    try:
        metadata = parse_json(text)
    except ValueError as error:
        raise CheckpointError(f"{path}: its metadata cannot be read ({error}): export the run again") from error
    if not isinstance(metadata, dict):
        raise CheckpointError(f"{path}: its metadata is no mapping: export the run again")
    return metadata


def _entry(key: str, value: str) -> bytes:
    inner = b"".join(
        bytes([tag]) + _varint(len(text)) + text
        for tag, text in ((_ENTRY_KEY, key.encode()), (_ENTRY_VALUE, value.encode()))
    )
    return bytes([_METADATA]) + _varint(len(inner)) + inner


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _entries(data: bytes) -> Iterator[tuple[str, str]]:
    """Key and value of each of the metadata of a serialised ONNX model; whatever is no such model has none."""
    try:
        for tag, start, end in _fields(data, 0, len(data)):
            if tag == _METADATA:
                texts = {inner: data[first:last].decode() for inner, first, last in _fields(data, start, end)}
                yield texts.get(_ENTRY_KEY, ""), texts.get(_ENTRY_VALUE, "")
    except (IndexError, ValueError):
        return


def _fields(data: bytes, position: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Tag, and first and last position, of each field of bytes of a message; numbers are passed over."""
    while position < end:
        tag, position = _read_varint(data, position)
        value, position = _read_varint(data, position)
        if tag & 7 == _BYTES:
            if value > end - position:
                raise ValueError("it is longer than what holds it")
            yield tag, position, position + value
            position += value
        elif tag & 7 != 0:
            raise ValueError("a model has no fields of such a type")


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        value |= (byte & 127) << shift
        position, shift = position + 1, shift + 7
        if byte < 128:
            return value, position
        if shift > 63:
            raise ValueError("a number of more than 64 bits")
