"""Reads from a pickle of `torch.save` which tensors it describes, and does nothing else it says.

Nothing in a pickle can be called but the functions here, and nothing is built but dictionaries,
lists, tuples, strings, numbers and the descriptions below.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, BinaryIO, ClassVar, NoReturn

import torch

# fmt: off
_OPCODES = (
    *pickle.PROTO, *pickle.STOP, *pickle.MARK, *pickle.BINPUT, *pickle.LONG_BINPUT,
    *pickle.BINGET, *pickle.LONG_BINGET, *pickle.GLOBAL, *pickle.REDUCE, *pickle.BUILD,
    *pickle.BINPERSID, *pickle.NONE, *pickle.NEWTRUE, *pickle.NEWFALSE, *pickle.BININT,
    *pickle.BININT1, *pickle.BININT2, *pickle.LONG1, *pickle.BINFLOAT, *pickle.BINUNICODE,
    *pickle.BINSTRING, *pickle.SHORT_BINSTRING, *pickle.EMPTY_DICT, *pickle.EMPTY_LIST,
    *pickle.EMPTY_TUPLE, *pickle.TUPLE, *pickle.TUPLE1, *pickle.TUPLE2, *pickle.TUPLE3,
    *pickle.APPEND, *pickle.APPENDS, *pickle.SETITEM, *pickle.SETITEMS,
)
# fmt: on
"""What torch.save uses of the pickle's language."""

MOST_GIVEN = 2**22
"""How many things a pickle may give to functions. A thing that it names again is counted again."""

MOST_DIMENSIONS = 64
"""Of a tensor, as in torch."""

_STORAGES: dict[str, torch.dtype] = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
    "torch.ComplexFloatStorage": torch.complex64,
    "torch.ComplexDoubleStorage": torch.complex128,
    "torch.QInt8Storage": torch.qint8,
    "torch.QUInt8Storage": torch.quint8,
    "torch.QInt32Storage": torch.qint32,
    "torch.storage.UntypedStorage": torch.uint8,
}

_DTYPES = {
    f"torch.{n}": dtype for n, dtype in vars(torch).items() if isinstance(dtype, torch.dtype)
}

_LEFT_OUT = {
    "collections.Counter",
    "torch.Size",
    "torch.device",
    "torch.serialization._get_layout",
    "torch.per_tensor_affine",
    "torch.per_tensor_symmetric",
    "torch.per_channel_affine",
    "torch.per_channel_symmetric",
    "torch.per_channel_affine_float_qparams",
    "_codecs.encode",
    *(
        f"{module}.{kind}"
        for module in ("builtins", "__builtin__")
        for kind in ("set", "bytearray", "complex")
    ),
}
"""What else a trainer's file may hold. It is not built."""


@dataclass(frozen=True)
class Storage:
    """A run of numbers in the file."""

    dtype: torch.dtype
    key: str
    elements: int


@dataclass(frozen=True)
class View:
    """A tensor: numbers of a storage, the first at `offset`."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype

    @property
    def extent(self) -> int:
        """How many numbers lie between the first and the last one, both included."""
        if 0 in self.shape:
            return 0
        return 1 + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))

    @property
    def overlaps(self) -> bool:
        """Whether a number of the storage is used twice, or could be."""
        end = 0  # the last number that the dimensions so far reach
        for stride, n in sorted(zip(self.strides, self.shape, strict=True)):
            if n > 1 and stride <= end:
                return True
            end += (n - 1) * stride
        return False


@dataclass(frozen=True)
class Other:
    """A tensor that is no plain array of numbers: sparse, quantised, nested, ..."""

    kind: str


class Forbidden(Exception):
    """A function or class that no description of tensors needs."""


class _Known(dict[int, Callable[[Any], None]]):
    """What to do for an opcode."""

    def __missing__(self, code: int) -> NoReturn:
        raise ValueError(f"torch.save does not write the opcode {code}")


class Unpickler(pickle._Unpickler):
    """Reads descriptions of tensors.

    It is the unpickler in Python, as the one in C takes the memory that a file claims to need.
    Keys of dictionaries are strings and whole numbers alone: the hash of a few nested tuples can
    take years.
    """

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = _Known(
        (code, pickle._Unpickler.dispatch[code]) for code in _OPCODES
    )

    stack: list[Any]  # of the base class, which declares neither
    pop_mark: Callable[[], list[Any]]

    def __init__(self, stream: BinaryIO):
        super().__init__(stream)
        self.storages: dict[str, Storage] = {}
        self._given = 0

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for the function or class. Raises Forbidden."""
        full = f"{module}.{name}"
        known = (_STORAGES | _DTYPES | _REBUILD).get(full.replace("torch.cuda.", "torch."))
        if known is not None:
            return known
        if full in _LEFT_OUT:
            return lambda *_: None
        if full.startswith("torch._utils._rebuild_"):
            kind = name.removeprefix("_rebuild_").replace("_", " ").replace("qt", "quantised t")
            return lambda *_: Other(kind)
        raise Forbidden(full[:200])

    def persistent_load(self, pid: Any) -> Storage:
        """Return the storage that the file refers to."""
        _, dtype, key, _, elements = pid[:5]
        if not (isinstance(dtype, torch.dtype) and isinstance(key, str)):
            raise TypeError("a storage without dtype or key")
        return self.storages.setdefault(key, Storage(dtype, key, _whole(elements)))

    def load_reduce(self) -> None:
        """Call a function, but with no long thing again and again: each call would copy it."""
        arguments = self.stack[-1]
        rows = (a for a in arguments if isinstance(a, (tuple, list, dict)))
        self._given += len(arguments) + sum(map(len, rows))
        if self._given > MOST_GIVEN:
            raise ValueError(f"it gives more than {MOST_GIVEN} things to functions")
        super().load_reduce()  # type: ignore[misc]

    def load_build(self) -> None:
        self.stack.pop()  # attributes of an object

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set([key, value])

    def load_setitems(self) -> None:
        self._set(self.pop_mark())

    def _set(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, dict):
            target.update(_pairs(zip(items[::2], items[1::2], strict=True)))

    dispatch[pickle.REDUCE[0]] = load_reduce
    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.SETITEMS[0]] = load_setitems


def _pairs(pairs: Iterable[tuple[Any, Any]] = ()) -> dict[str | int, Any]:
    return {key: value for key, value in pairs if isinstance(key, (str, int))}


def _whole(n: Any) -> int:
    if not isinstance(n, int):
        raise TypeError("a number is none")
    return int(n)


def _view(
    storage: Any, offset: Any, shape: Any, strides: Any, dtype: torch.dtype | None = None
) -> View:
    if max(len(shape), len(strides)) > MOST_DIMENSIONS:
        raise ValueError(f"a tensor has more than {MOST_DIMENSIONS} dimensions")
    sizes, steps = (tuple(map(_whole, numbers)) for numbers in (shape, strides))
    if not isinstance(storage, Storage) or len(sizes) != len(steps):
        raise TypeError("a tensor without storage or strides")
    return View(storage, _whole(offset), sizes, steps, dtype or storage.dtype)


_REBUILD: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _pairs,
    "torch._utils._rebuild_tensor_v2": lambda data, at, shape, strides, *_: _view(
        data, at, shape, strides
    ),
    "torch._utils._rebuild_tensor_v3": lambda data, at, shape, strides, _grad, _hooks, dtype, *_: (
        _view(data, at, shape, strides, dtype)
    ),
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
    "torch._utils._rebuild_parameter_with_state": lambda tensor, *_: tensor,
}
"""What stands for the functions that make tensors and dictionaries."""
