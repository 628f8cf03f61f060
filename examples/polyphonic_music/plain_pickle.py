"""Pickles of plain values: lists, tuples, dicts with names as keys, strings and numbers."""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Callable
from typing import Any, NoReturn

from polyphonic_music import limits
from polyphonic_music.files import UnusableError

# Not here: opcodes that call something, that allocate a size stated in the file, or that make sets, whose
# entries are hashed: the hash of nested tuples takes exponential time or overflows the stack.
PLAIN = """
    PROTO FRAME STOP MARK PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET
    NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT
    STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8
    BINBYTES SHORT_BINBYTES BINBYTES8
    EMPTY_LIST LIST APPEND APPENDS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3
    EMPTY_DICT DICT SETITEM SETITEMS GLOBAL STACK_GLOBAL INST
"""  # the last three look up a name, which find_class refuses
# Where an opcode has the keys on the stack: all entries since the last mark, or the last entries.
KEYS = {"DICT": slice(None, None, 2), "SETITEMS": slice(None, None, 2), "SETITEM": slice(-2, -1)}
CODES = {opcode.name: ord(opcode.code) for opcode in pickletools.opcodes}


def load_plain(data: bytes) -> Any:
    """Return the value of a pickle of any protocol. No code in it is run.

    Lists can contain the same list many times, or themselves.

    Raises:
        UnusableError: The pickle has other values, or more than limits.MAX_OPCODES opcodes.
        Exception: An exception of another type, where the pickle is damaged.
    """
    return _PlainUnpickler(data).load()


class _PlainUnpickler(pickle._Unpickler):
    """The base is the unpickler in Python: the one in C allocates the sizes that a damaged file states."""

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data), encoding="latin1")  # for the strings in a pickle of Python 2
        self.dispatch = _Handlers()  # type: ignore[misc]

    def find_class(self, module: str, name: str) -> NoReturn:
        asked = f"{module}.{name}"[:60]
        raise UnusableError(f"asks for {asked!r}; only plain lists, tuples and numbers are read")


class _Handlers(dict[int, Callable[[Any], None]]):
    """The functions that execute opcodes. Each look-up counts, and only plain opcodes are there."""

    def __init__(self) -> None:
        base: dict[int, Callable[[Any], None]] = pickle._Unpickler.dispatch
        super().__init__({CODES[name]: base[CODES[name]] for name in PLAIN.split()})
        for name, keys in KEYS.items():
            self[CODES[name]] = _with_names(base[CODES[name]], keys)
        self.room = limits.MAX_OPCODES

    def __getitem__(self, code: int) -> Callable[[Any], None]:
        self.room -= 1
        if self.room < 0:
            raise UnusableError(f"has more than {limits.MAX_OPCODES} opcodes")
        return super().__getitem__(code)

    def __missing__(self, code: int) -> NoReturn:
        raise UnusableError(f"is not a readable pickle of plain values: it has the opcode {chr(code)!r}")


def _with_names(execute: Callable[[Any], None], keys: slice) -> Callable[[Any], None]:
    """The opcode's function, after a check that the keys are strings."""

    def checked(unpickler: Any) -> None:
        if not all(isinstance(key, str) for key in unpickler.stack[keys]):
            raise UnusableError("has a dict whose keys are not strings")
        execute(unpickler)

    return checked
