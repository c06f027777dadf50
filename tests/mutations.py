"""Strategies of hypothesis that spoil what is in order: bytes, the members of an archive, documents such as JSON."""

import copy
import io
import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

#: What parsers, terminals, paths and numbers stumble over.
TEXTS = (
    "", " ", ".", "..", "../..", "../../../escaped", "/etc/passwd", "~", "a/b", "a\\b", "con", "x" * 300, "\x00", "\n",
    "\r\n", "\x1b[2J", "\ud800", "ﬀ", "e\u0301", "=1+1", "${oc.env:HOME}", "${x", "nan", "1e999", "-1", "0", "None",
    "good", "test", "train", "fold0", "fold\u00b2", "fold-1", "{", "[1,2", "%s", "{0}", "[bold]", "[/]", "<b>", "true",
    "\\", "'", '"', ",", "é.png", "🙂",
)  # fmt: skip
NUMBERS = (
    0, 1, -1, 2, 3, 7, 255, 256, 65535, 2**31 - 1, 2**31, -(2**31), 2**32, 2**53, 2**63 - 1, 2**63, -(2**63), 2**64,
    10**30, 10**400, 0.0, -0.0, 0.5, 1.5, 1e-320, 1e38, 1e39, 1e308, float("nan"), float("inf"), float("-inf"),
)  # fmt: skip

texts = st.sampled_from(TEXTS) | st.text(max_size=8)
scalars = st.none() | st.booleans() | st.sampled_from(NUMBERS) | texts | st.floats() | st.integers()
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=6,
)

# -- bytes ------------------------------------------------------------------------------------------------------------

_INTERESTING = (
    0,
    1,
    2,
    7,
    8,
    16,
    32,
    127,
    128,
    255,
    256,
    1000,
    32767,
    32768,
    65535,
    65536,
    2**24,
    2**31 - 1,
    2**31,
    2**32 - 1,
)
_OPERATIONS = ("flip", "set", "number", "insert", "delete", "double", "cut", "copy", "fill")
_edit = st.tuples(
    st.sampled_from(_OPERATIONS), st.integers(0, 2**20), st.integers(0, 2**20), st.binary(max_size=8)
)  # fmt: skip


def edited(data: bytes, operation: str, place: int, other: int, given: bytes) -> bytes:
    """One change; `place` and `other` are taken modulo what there is."""
    if not data:
        return given
    # Headers decide more than what follows: half of the changes are made there.
    at = (place // 2) % min(len(data), 128) if place % 2 else (place // 2) % len(data)
    length = other % 64 + 1
    if operation == "flip":
        return data[:at] + bytes([data[at] ^ 1 << other % 8]) + data[at + 1 :]
    if operation == "set":
        return data[:at] + given + data[at + len(given) :]
    if operation == "number":
        form = ("B", "<H", ">H", "<I", ">I", "<Q", ">Q")[other % 7]
        number = _INTERESTING[other // 7 % len(_INTERESTING)] % 2 ** (8 * struct.calcsize(form))
        return data[:at] + struct.pack(form, number) + data[at + struct.calcsize(form) :]
    if operation == "insert":
        return data[:at] + given + data[at:]
    if operation == "delete":
        return data[:at] + data[at + length :]
    if operation == "double":
        return data[: at + length] + data[at:]
    if operation == "cut":
        return data[:at]
    if operation == "copy":
        start = other % len(data)
        return data[:at] + data[start : start + length] + data[at + length :]
    return data[:at] + given[:1] * length + data[at + length :]


def with_checksums(data: bytes) -> bytes:
    """A PNG whose chunks have the right checksums, so that a decoder gets to see what is in them."""
    if data[:8] != b"\x89PNG\r\n\x1a\n":
        return data
    made, at = data[:8], 8
    while at + 12 <= len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        body = data[at + 4 : at + 8 + length]
        made += data[at : at + 4] + body + struct.pack(">I", zlib.crc32(body))
        at += 12 + length
    return made + data[at:]


@st.composite
def spoilt_bytes(draw: st.DrawFn, originals: list[bytes], most: int = 6) -> bytes:
    """One of the originals with some changes."""
    data = draw(st.sampled_from(originals))
    for edit in draw(st.lists(_edit, min_size=1, max_size=most)):
        data = edited(data, *edit)
    return with_checksums(data) if draw(st.booleans()) else data


@st.composite
def spoilt_archive(draw: st.DrawFn, originals: list[bytes]) -> bytes:
    """A ZIP archive of which a member was changed, left out or renamed, and that is in order otherwise."""
    with zipfile.ZipFile(io.BytesIO(draw(st.sampled_from(originals)))) as given:
        members = [(name, given.read(name)) for name in given.namelist()]
    at = draw(st.integers(0, len(members) - 1))
    name, data = members[at]
    action = draw(st.sampled_from(("spoil", "spoil", "spoil", "spoil", "drop", "swap", "name")))
    if action == "spoil":
        members[at] = name, draw(spoilt_bytes([data], most=4))
    elif action == "drop":
        del members[at]
    elif action == "swap":
        members[at] = name, draw(st.sampled_from(members))[1]
    else:
        members[at] = draw(texts).encode("utf-8", "replace").decode().replace("\x00", "") or "x", data
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w", draw(st.sampled_from((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)))) as made:
        for name, data in members:
            made.writestr(name, data)
    return whole.getvalue()


# -- documents --------------------------------------------------------------------------------------------------------


def _places(content: Any) -> Iterator[tuple[Any, Any]]:
    """Each container and key of a document, outer ones first."""
    pending = [content]
    for container in pending:
        keys = list(container) if isinstance(container, dict) else range(len(container))
        for key in keys:
            yield container, key
            if isinstance(container[key], dict | list):
                pending.append(container[key])


@st.composite
def spoilt(draw: st.DrawFn, originals: list[Any], given: st.SearchStrategy[Any] = values, most: int = 3) -> Any:
    """One of some documents of dicts and lists, with some values replaced, removed, added, doubled or moved."""
    content = copy.deepcopy(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(1, most))):
        places = list(_places(content))
        if not places:
            return draw(given)
        container, key = places[draw(st.integers(0, len(places) - 1))]
        action = draw(st.sampled_from(("replace", "replace", "replace", "drop", "add", "double", "move", "wrap")))
        if action == "replace":
            container[key] = draw(given)
        elif action == "drop":
            del container[key]
        elif action == "add" and isinstance(container, dict):
            container[draw(texts)] = draw(given)
        elif action == "double" and isinstance(container, list):
            container.append(copy.deepcopy(container[key]))
        elif action == "move":
            other, place = places[draw(st.integers(0, len(places) - 1))]
            container[key] = copy.deepcopy(other[place])
        else:
            container[key] = [container[key]] if draw(st.booleans()) else {"x": container[key]}
    return content
