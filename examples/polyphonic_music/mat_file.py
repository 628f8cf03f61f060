"""Cell arrays of real matrices in a MATLAB file of format 5 ("MAT-File Format", The MathWorks).

    file      header of 128 bytes, elements
    element   type and size (4 bytes each), data, padding to 8 bytes; if the upper half of the type is not 0,
              it is the size, and the data are the next 4 bytes
    matrix    an element of elements: flags with the class, dimensions, name; then the cells of a cell array,
              which are matrices, or the values of a numeric one, column by column

scipy.io.loadmat is not used, because it allocates the sizes that a file states and recurses as deep as its
cells are nested: a file of 200 bytes can take gigabytes, and one of 10 MB ends the process.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from polyphonic_music import limits
from polyphonic_music.files import UnusableError

HEADER_BYTES = 128
MATRIX, COMPRESSED = 14, 15  # types of elements
VALUES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
CELL_CLASS = 1
NUMERIC_CLASSES = range(6, 16)  # double, single, int8 to uint64
COMPLEX_FLAG = 0x0800


class Matrix(NamedTuple):
    """A matrix that is not read any further than its name."""

    kind: int  # the class
    is_complex: bool
    shape: tuple[int, ...]
    name: str
    content: Iterator[tuple[int, memoryview]]  # the elements after the name


def cell_arrays(data: bytes) -> Iterator[tuple[str, Iterator[NDArray[Any]]]]:
    """The names and cells of all cell arrays. A cell is read when the iterator comes to it.

    Raises:
        UnusableError: The file has another format, is too large when it is decompressed, or has a
            cell that is not a real matrix.
        Exception: An exception of another type, where the file is damaged.
    """
    order = {b"IM": "<", b"MI": ">"}.get(data[HEADER_BYTES - 2 : HEADER_BYTES])
    if order is None:
        raise UnusableError("is not a readable MATLAB file of format 5")
    if struct.unpack(f"{order}H", data[HEADER_BYTES - 4 : HEADER_BYTES - 2])[0] != 0x0100:
        raise UnusableError("is not a readable MATLAB file of format 5; MATLAB writes it with save -v7")
    room = limits.MAX_MAT_BYTES
    for kind, content in _elements(memoryview(data)[HEADER_BYTES:], order):
        if kind == COMPRESSED:
            plain = _decompressed(content, room)
            room -= len(plain)
            kind, content = next(_elements(memoryview(plain), order))
        if kind == MATRIX:
            matrix = _matrix(content, order)
            if matrix.kind == CELL_CLASS:
                yield matrix.name, _cells(matrix, order)


def _elements(data: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    """The types and data of consecutive elements."""
    at = 0
    while at < len(data):
        kind, size = struct.unpack_from(f"{order}II", data, at)
        begin, end = at + 8, at + 8 + size
        if kind != COMPRESSED:
            end += -size % 8
        if kind >> 16:
            kind, size, begin, end = kind & 0xFFFF, kind >> 16, at + 4, at + 8
        if begin + size > min(end, len(data)):
            raise ValueError(f"an element of {size} bytes does not fit into the file")
        yield kind, data[begin : begin + size]
        at = end


def _decompressed(data: memoryview, room: int) -> bytes:
    stream = zlib.decompressobj()
    plain = stream.decompress(data, room + 1)
    if len(plain) > room:
        raise UnusableError(f"has more than {limits.MAX_MAT_BYTES:,} bytes when decompressed")
    if not stream.eof:
        raise ValueError("a compressed element ends early")
    return plain


def _matrix(data: memoryview, order: str) -> Matrix:
    parts = _elements(data, order)
    (_, flags), (_, sizes), (_, name) = next(parts), next(parts), next(parts)
    word = struct.unpack_from(f"{order}I", flags)[0]
    shape = tuple(np.frombuffer(sizes, f"{order}i4").tolist())
    return Matrix(word & 0xFF, bool(word & COMPLEX_FLAG), shape, bytes(name).decode("latin1"), parts)


def _cells(array: Matrix, order: str) -> Iterator[NDArray[Any]]:
    cells = 0
    for kind, content in array.content:
        where = f"{array.name}[{cells}]"
        if kind != MATRIX:
            raise ValueError(f"{where} is not a matrix")
        yield _values(_matrix(content, order), where, order) if len(content) else np.zeros((0, 0))
        cells += 1
    if cells != prod(array.shape):
        raise ValueError(f"{array.name} must have {list(array.shape)} cells, has {cells}")


def _values(matrix: Matrix, where: str, order: str) -> NDArray[Any]:
    if matrix.kind not in NUMERIC_CLASSES or matrix.is_complex:
        raise UnusableError(
            f"{where} must be a matrix [T, 88] of real numbers, got MATLAB class {matrix.kind}"
        )
    kind, content = next(matrix.content)
    return np.frombuffer(content, order + VALUES[kind]).reshape(matrix.shape, order="F")
