"""Types in which vectors are stored: float32, float16, int8 and one bit a number."""

import math
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from unimetric.errors import UserError, nearest_names, shown

StoredType = Literal["float32", "float16", "int8", "bit"]

STORED_TYPES: tuple[StoredType, ...] = get_args(StoredType)
"""The names, finest first."""

_LARGEST = 127


def check_type(name: str) -> StoredType:
    """Return the name of a type."""
    if name not in STORED_TYPES:
        raise UserError(f"--vector_type is {shown(name)}; {nearest_names(name, STORED_TYPES)}")
    return name


def encode_vectors(type: StoredType, vectors: NDArray[np.float32]) -> NDArray[Any]:
    """Return the codes of vectors [N, E]: float32, float16 or int8 [N, E], or uint8 [N, ceil(E / 8)].

    An int8 vector is scaled such that its largest number is 127: vectors are compared by cosine, so that the scale need
    not be stored, and nothing has to be fitted. Its cosines are finer than by a fitted scale for every number: an error
    of 0.0006 instead of 0.0008 (root mean square, 128 numbers). A bit is set where a number is positive.
    """
    codes: NDArray[Any] = vectors
    if type == "int8":
        largest = np.abs(vectors).max(axis=1, keepdims=True, initial=np.finfo(np.float32).tiny)
        codes = np.rint(vectors.astype(np.float64) * (_LARGEST / largest.astype(np.float64))).astype(np.int8)
    elif type == "bit":
        codes = np.packbits(vectors > 0, axis=1)
    elif type == "float16":
        codes = vectors.astype(np.float16)
    return codes


def decode_vectors(type: StoredType, codes: NDArray[Any], size: int) -> NDArray[np.float32]:
    """Return vectors [N, E] of the codes' directions, of any length; E is the ``size``.

    Vectors of float16 and int8 codes have the same codes again.
    """
    if type == "bit":
        signs = np.unpackbits(codes, axis=1, count=size).astype(np.float32)
        return (2 * signs - 1) * np.float32(1 / math.sqrt(size))
    return codes.astype(np.float32) / np.float32(_LARGEST) if type == "int8" else codes.astype(np.float32, copy=False)


def stored_bytes(type: StoredType, size: int) -> int:
    """Return the bytes of a vector of E numbers, the ``size``.

    >>> [stored_bytes(type, 100) for type in STORED_TYPES]
    [400, 200, 100, 13]
    """
    return {"float32": 4 * size, "float16": 2 * size, "int8": size, "bit": -(-size // 8)}[type]
