"""Files damaged by a seeded hand: their bytes, the values of their JSON, the header of their tensors; and a watch."""

from __future__ import annotations

import copy
import json
import resource
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

ODD_VALUES: list[Any] = [
    *(None, True, False, "", "0", "8", "\0", "a\nb", "\ud800", "../x", "x" * 10_000, [], {}, [[]], {"": 1}),
    *(0, -1, 1, 2, 7, 16, 48, 4096, 65536, 65537, 2**31, 2**63, 2**64, 10**300, -(10**300)),
    *(0.0, -0.5, 0.5, 1.0, 1e-300, 1e300, float("nan"), float("inf"), -float("inf")),
]
DTYPES = ["F64", "F32", "F16", "BF16", "I64", "I32", "I8", "U8", "BOOL", "F8_E4M3", "F8_E8M0", "F4", "C64", "X1", "", 5]


def damaged(content: bytes, random: Random, within: int | None = None) -> bytes:
    """Some bytes turned, cut off, put in, taken out, doubled or set to zero, in the first ``within``."""
    changed, end = bytearray(content), min(within or len(content), len(content))
    place, length = random.randrange(end), random.choice([1, 1, 2, 8, 30])
    action = random.choice(["flip", "flip", "cut", "insert", "remove", "double", "zero"])
    if action == "flip":
        for _ in range(random.choice([1, 1, 2, 5])):
            changed[random.randrange(end)] ^= 1 << random.randrange(8)
    elif action == "cut":
        del changed[place:]
    elif action == "insert":
        changed[place:place] = random.randbytes(length)
    elif action == "remove":
        del changed[place : place + length]
    elif action == "double":
        changed[place:place] = changed[place : place + length]
    else:
        changed[place : place + length] = bytes(length)
    return bytes(changed)


def changed_json(tree: Any, random: Random, values: list[Any] | None = None) -> Any:
    """A copy with one value replaced, taken out, renamed, doubled under another name, or wrapped many times."""
    tree = copy.deepcopy(tree)
    parent, key = random.choice([*_places(tree)])
    action = random.choice(["replace", "replace", "replace", "near", "remove", "rename", "double", "wrap"])
    value = parent[key]
    if action == "near" and type(value) in (int, float):
        parent[key] = random.choice([value + 1, value - 1, -value, value * 2, value * 1000, float(value), str(value)])
    elif action == "remove":
        del parent[key]
    elif action in ("rename", "double") and isinstance(parent, dict):
        name = random.choice([key + "x", key.upper(), "", "__class__", "self", "\0", "a\nb", "y" * 5000, *parent])
        parent[name] = copy.deepcopy(value) if action == "double" else parent.pop(key)
    elif action == "wrap":
        for _ in range(random.choice([1, 3, 20, 600])):
            value = [value] if random.random() < 0.5 else {"a": value}
        parent[key] = value
    else:
        parent[key] = random.choice(values or ODD_VALUES)
    return tree


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    keys = list(tree) if isinstance(tree, dict) else list(range(len(tree))) if isinstance(tree, list) else []
    for key in keys:
        yield tree, key
        yield from _places(tree[key])


def changed_header(content: bytes, random: Random) -> bytes:
    """A safetensors file with something wrong in the JSON of its header, or in what it says of the header's length."""
    length = struct.unpack("<Q", content[:8])[0]
    header, body = json.loads(content[8 : 8 + length]), content[8 + length :]
    names = [name for name in header if name != "__metadata__"]
    entry, other = header[random.choice(names)], header[random.choice(names)]
    action = random.choice(["any", "dtype", "shape", "offsets", "share", "swap", "rename", "length", "body", "more"])
    if action == "any":
        header = changed_json(header, random)
    elif action == "dtype":
        entry["dtype"] = random.choice(DTYPES)
    elif action == "shape":
        shapes = [entry["shape"][::-1], [*entry["shape"], 1], [2**62, 4], [2**32, 2**32], [0], [0, 2**62], [-1], [1.5]]
        entry["shape"] = random.choice([*shapes, [], other["shape"]])
    elif action == "offsets":
        start, stop = entry["data_offsets"]
        step = random.choice([1, 4, -4, 2**40, 2**63])
        entry["data_offsets"] = random.choice(
            [[start + step, stop + step], [start, stop + step], [stop, start], [-4, 0]]
        )
    elif action == "share":
        entry["data_offsets"] = other["data_offsets"]
    elif action == "swap":
        kept = dict(entry)
        entry.update(other)
        other.update(kept)
    elif action == "rename":
        name = random.choice(names)
        header[random.choice([*names, name + "x", "", "a\nb", "y" * 5000])] = header.pop(name)
    elif action == "body":
        body = random.choice([body[:-4], body + b"\0" * 4, b"", body * 2, damaged(body, random)])
    elif action == "more":
        header["more"] = {"dtype": "F32", "shape": [2**40], "data_offsets": [len(body), len(body) + 2**42]}
    text = json.dumps(header).encode()
    said = len(text)
    if action == "length":
        said = random.choice(
            [0, 1, len(text) - 1, len(text) + 1, len(text) + len(body), 10**8, 2**40, 2**63, 2**64 - 1]
        )
    return struct.pack("<Q", said) + text + body


def plain_tensors(content: bytes, prefix: str = "") -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """The float32 tensors of a safetensors file, and its metadata, read without the library."""
    length = struct.unpack("<Q", content[:8])[0]
    header, body = json.loads(content[8 : 8 + length]), content[8 + length :]
    metadata = header.pop("__metadata__", None) or {}
    tensors = {}
    for name, entry in header.items():
        if name.startswith(prefix):
            start, stop = entry["data_offsets"]
            assert entry["dtype"] == "F32"
            tensors[name.removeprefix(prefix)] = np.frombuffer(body[start:stop], "<f4").reshape(entry["shape"])
    return tensors, metadata


@contextmanager
def little_memory(more: int = 2**30) -> Iterator[None]:
    """Whoever wants ``more`` bytes than the process has by now gets none; on Linux, where that can be said."""
    if sys.platform != "linux":
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
