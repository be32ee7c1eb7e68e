"""A restricted reader of what torch.save wrote: tensors and plain containers, and nothing is run.

No name that a file asks for is ever imported. Those that build tensors and containers are ours, those
known to be harmless (the state of random generators, classes of DeepSpeed) become an Inert object that
keeps its state alone, and any other is refused.
"""

from __future__ import annotations

import pickle
import pickletools
import re
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import IO, Any

from neoxkit.checkpoint.json_text import LARGEST
from neoxkit.checkpoint.safetensors_file import reasonable
from neoxkit.convert.pickles.bounded import BoundedUnpickler, check_keys
from neoxkit.convert.pickles.storage import Sealed, Storage, Stored

DTYPES = {
    "DoubleStorage": "F64",
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}
"""torch's names of storages, and safetensors' names of what is in them."""

_INERT = frozenset(
    {
        "numpy.core.multiarray._reconstruct",
        "numpy._core.multiarray._reconstruct",
        "numpy.core.multiarray.scalar",
        "numpy._core.multiarray.scalar",
        "numpy.ndarray",
        "numpy.dtype",
        "argparse.Namespace",
        "types.SimpleNamespace",
        "pathlib.PosixPath",
        "pathlib.PurePosixPath",
        "copy_reg._reconstructor",
        "copyreg._reconstructor",
        "__builtin__.object",
        "builtins.object",
        "torch.device",
    }
)
_INERT_PACKAGES = ("deepspeed.", "megatron.", "numpy.dtypes.", "numpy.random.")

_OPCODES = frozenset(
    {"MARK", "STOP", "POP", "POP_MARK", "DUP", "PROTO", "FRAME", "NONE", "NEWTRUE", "NEWFALSE"}
    | {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"}
    | {"STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"}
    | {"UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
    | {"EMPTY_LIST", "APPEND", "APPENDS", "LIST", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"}
    | {"EMPTY_DICT", "DICT", "SETITEM", "SETITEMS", "EMPTY_SET", "ADDITEMS", "FROZENSET"}
    | {"GET", "BINGET", "LONG_BINGET", "PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}
    | {"GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD", "NEWOBJ", "NEWOBJ_EX", "BINPERSID"}
)
"""What a pickle may consist of. Missing are the registry of extensions and buffers from outside."""

DAMAGE = (pickle.UnpicklingError, EOFError, ValueError, LookupError, AttributeError, TypeError, OverflowError)
"""What reading bytes that are no pickle of ours has been seen to raise."""


class ForbiddenError(Exception):
    """A pickle asks for something that is neither a tensor nor a plain container."""


class UnsupportedError(Exception):
    """A file of tensors, and of none that are read here: compressed, quantised, sparse, of an odd dtype."""


class Inert:
    """Stands for an object that is not built: it keeps the state that the pickle gives it, and does nothing."""

    named = ""
    state: object = None

    def __new__(cls, *args: object, **options: object) -> Inert:
        """Any arguments will do."""
        return super().__new__(cls)

    def __init__(self, *args: object, **options: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        self.state = state


class Mapping(dict[Any, Any]):
    """An OrderedDict of the file. What was set on it beside its entries is dropped."""

    def __setstate__(self, state: object) -> None:
        pass


@dataclass(frozen=True)
class Kind(Sealed):
    """The class of a storage: it says the dtype alone."""

    dtype: str


@dataclass(frozen=True)
class Builder(Sealed):
    """A function of ours that a pickle may call. A pickle can set attributes of what it has, but not of this."""

    build: Callable[..., object]

    def __call__(self, *args: object) -> object:
        """What it builds."""
        return self.build(*args)


def _tensor(storage: object, offset: object, shape: object, strides: object, *rest: object) -> Stored:
    """What torch._utils._rebuild_tensor_v2 and its forerunner are given."""
    sizes, steps = _sizes(shape), _sizes(strides)
    if not reasonable(sizes):
        raise pickle.UnpicklingError("the sizes of no tensor")
    if not isinstance(storage, Storage) or len(sizes) != len(steps) or not isinstance(offset, int) or offset < 0:
        raise pickle.UnpicklingError("not a tensor")
    tensor = Stored(storage, offset, sizes, steps)
    # A stride of 0 repeats elements: so some bytes could ask for all memory.
    if prod(sizes) > storage.elements and tensor.bytes > storage.file.stat().st_size:
        raise pickle.UnpicklingError("a tensor larger than its file")
    return tensor


def _sizes(value: object) -> tuple[int, ...]:
    if not isinstance(value, tuple) or not all(type(size) is int and 0 <= size <= LARGEST for size in value):
        raise pickle.UnpicklingError("not the sizes of a tensor")
    return value


def _parameter(tensor: object, *rest: object) -> object:
    return tensor


def _bytes(text: object, encoding: object) -> bytes:
    """What older protocols, which have no bytes, spell as an encoded text."""
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError("not bytes")
    return text.encode("latin1")


def _mapping(pairs: object = ()) -> Mapping:
    if not isinstance(pairs, list | tuple) or not all(isinstance(pair, list | tuple) and pair for pair in pairs):
        raise pickle.UnpicklingError("not the entries of a mapping")
    check_keys(pair[0] for pair in pairs)
    return Mapping(pairs)


def _set(elements: object = ()) -> set[object]:
    if not isinstance(elements, list | tuple):
        raise pickle.UnpicklingError("not the elements of a set")
    check_keys(elements)
    return set(elements)


_BUILT: dict[str, Callable[..., object]] = {
    "collections.OrderedDict": _mapping,
    "__builtin__.set": _set,
    "builtins.set": _set,
    "builtins.frozenset": lambda elements=(): frozenset(_set(elements)),
    "_codecs.encode": _bytes,
    "torch.Size": tuple,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
}


class _Reader(BoundedUnpickler):
    def __init__(self, file: IO[bytes], size: int, storage: Callable[[Kind, object, object], Storage]) -> None:
        super().__init__(file, size)
        self._storage = storage

    def find_class(self, module: str, name: str) -> object:
        """What stands for a name.

        Raises UnsupportedError for another kind of tensor, ForbiddenError for what nobody needs for tensors.
        """
        full = f"{module}.{name}"
        if full in _BUILT:
            return Builder(_BUILT[full])
        if module == "torch" and name in DTYPES:
            return Kind(DTYPES[name])
        if full in _INERT or full.startswith(_INERT_PACKAGES) or (module == "torch" and name in _TORCH_DTYPES):
            return type(name.rpartition(".")[2] or "Inert", (Inert,), {"named": full})
        if _OTHER_TENSORS.fullmatch(full):
            raise UnsupportedError(f"a tensor by {full}")
        raise ForbiddenError(full)

    def persistent_load(self, pid: object) -> Storage:
        """The storage that an entry ("storage", kind, key, device, elements[, view]) names."""
        if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != "storage" or not isinstance(pid[1], Kind):
            raise pickle.UnpicklingError("not a storage")
        if len(pid) == 6 and pid[5] is not None:
            raise pickle.UnpicklingError("a storage that is part of another")
        if not isinstance(pid[2], str | int):
            raise pickle.UnpicklingError("not a storage")
        return self._storage(pid[1], pid[2], pid[4])


_OTHER_TENSORS = re.compile(r"torch\.(storage\.)?\w+Storage|torch\._utils\._rebuild_\w+|torch\._tensor\._rebuild_\w+")
"""What torch builds other tensors of: complex, quantised, sparse, of 8 bits, of a class of its own."""

_TORCH_DTYPES = frozenset(
    {"float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"}
)


def load(file: IO[bytes], storage: Callable[[Kind, object, object], Storage]) -> Any:
    """The next object of a file of pickles; `storage` (kind, key, elements) finds the bytes of a tensor.

    Raises ForbiddenError for a pickle that asks for more than tensors and containers, UnsupportedError
    for tensors of another kind, and one of DAMAGE for bytes that are no pickle.
    """
    start = file.tell()
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if opcode.name not in _OPCODES:
            raise ForbiddenError(f"the pickle operation {opcode.name}")
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and not 0 <= int(argument or 0) <= count + 1:
            raise pickle.UnpicklingError("a place of the memo beyond the file")  # the table would have that size
    size = file.tell() - start
    file.seek(start)
    return _Reader(file, size, storage).load()
