"""Damages files by chance: bytes of any kind, JSON and YAML by their structure, pickles by their operations."""

from __future__ import annotations

import io
import json
import pickletools
import re
import struct
import zipfile
from collections.abc import Callable, Sequence
from copy import deepcopy
from random import Random
from typing import Any

TWICE, DEEP = "\uffffagain", "\uffffdeep"
_SPELLED_TWICE = json.dumps(TWICE)[:-1]
_SPELLED_DEEP = re.escape(json.dumps(DEEP)[:-1]) + r'(\d+)([lo])"'

BYTES = [
    *(b"\x00", b"\xff", b"\xff\xfe", b"\x80", b"\n", b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b"-", b"."),
    *(b"0", b"9", b"99999999999", b"1e999", b"null", b"NaN", b"\\ud800", b"\\u0000", b"../", b"/etc/passwd"),
    *(b"\xff\xff\xff\xff", b"\x00\x00\x00\x80", b"\xff" * 8, b"[" * 3000, b'{"a":' * 2000, b"&a [*a,*a]"),
]
NUMBERS: list[Any] = [
    *(-1, 0, 1, 2, 3, 7, 255, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, 10**15, 10**18, 10**30),
    *(10**400, 10**4299, -(10**18), 0.5, -0.5, 1e18, 1e308, 1e-320, float("inf"), float("-inf"), float("nan")),
    *(True, False, None, "7", "", [], {}, [1], "0x10", "1e5"),
]
TEXTS: list[Any] = [
    *("", ".", "..", "/", "../secret", "../../secret", "/etc/passwd", "/dev/zero", "/proc/self/mem", "a/../../secret"),
    *("model/../../secret", "..\\secret", "\x00", "a\x00b", "\ud800", "\udc80", "é", "a\nb", "x" * 300, "y/" * 3000),
    *("manifest.json", "config.json", "model", "~", "$HOME", "%2e%2e/secret", "link", "link/secret", "-", "null"),
    *("F32", "BF16", "F64", "I8", "U64", "F4", "F6_E2M3", "C64", "BOOL", "Q4", "tp", "ep", "ragged", "norm"),
    *(None, 0, 1, -1, 1.5, True, [], {}, ["a"], {"a": "b"}),
]


def deep(dice: Random) -> str:
    """Stands for lists or objects in one another, some of them deeper than a reader can go."""
    return f"{DEEP}{dice.choice([2, 9, 60, 300, 900, 2000, 50_000])}{dice.choice('lo')}"


def damaged(data: bytes, dice: Random, times: int | None = None) -> tuple[bytes, str]:
    """Other bytes, and what was done."""
    found, said = bytearray(data), []
    for _ in range(dice.choice([1, 1, 1, 2, 4]) if times is None else times):
        at = dice.randrange(len(found) + 1)
        end = min(len(found), at + dice.choice([1, 1, 2, 8, 40, 500]))
        kind = dice.choice(["flip", "flip", "set", "insert", "delete", "cut", "repeat", "zero", "swap", "number"])
        said.append(f"{kind} {at}:{end}")
        if kind == "flip" and at < len(found):
            found[at] ^= 1 << dice.randrange(8)
        elif kind == "set":
            found[at:end] = dice.randbytes(end - at)
        elif kind == "insert":
            found[at:at] = dice.choice(BYTES)
        elif kind == "delete":
            del found[at:end]
        elif kind == "cut":
            del found[at:]
        elif kind == "repeat":
            found[at:at] = found[at:end]
        elif kind == "zero":
            found[at:end] = bytes(end - at)
        elif kind == "swap":
            other = dice.randrange(len(found) + 1)
            moved = bytes(found[at:end])
            found[at:end] = found[other : other + end - at]
            found[other : other + len(moved)] = moved
        elif kind == "number":
            size = dice.choice([2, 4, 8])
            number = dice.choice([0, 1, 255, 2**15, 2**16 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1, len(data)])
            found[at : at + size] = (number % 256**size).to_bytes(size, "little")
    return bytes(found), ", ".join(said)


Path = tuple[Any, ...]


def places(tree: Any, at: Path = ()) -> list[Path]:
    """Every place of a tree, the root first."""
    found: list[Path] = [at]
    if isinstance(tree, dict):
        for key, value in tree.items():
            found += places(value, (*at, key))
    elif isinstance(tree, list):
        for index, value in enumerate(tree):
            found += places(value, (*at, index))
    return found


def value_at(tree: Any, path: Path) -> Any:
    """What lies there."""
    for key in path:
        tree = tree[key]
    return tree


def changed_tree(given: Any, dice: Random, times: int | None = None) -> tuple[Any, str]:
    """Another tree, changed where a reader may be deceived, and what was done; the one given stays."""
    tree, said = json.loads(json.dumps(given)), []
    for _ in range(dice.choice([1, 1, 1, 2, 3]) if times is None else times):
        found = places(tree)
        path = dice.choice(found[1:] or found)
        # Long lists of equals would get nearly all: choose a level first, half of the time.
        if dice.random() < 0.5:
            level = dice.choice(sorted({len(each) for each in found[1:]} or {0}))
            path = dice.choice([each for each in found if len(each) == level])
        if not path:
            return deep(dice), "all of it, nested"
        parent, key = value_at(tree, path[:-1]), path[-1]
        new, how = _other(parent[key], dice, tree, found)
        parent[key] = new
        if how == "twice" and isinstance(parent, dict):
            parent[f"{TWICE}{key}"] = deepcopy(value_at(tree, dice.choice(found[1:])))
        elif how == "gone" and isinstance(parent, dict | list):
            del parent[key]
        elif how == "renamed" and isinstance(parent, dict):
            parent[str(dice.choice([*TEXTS, *parent]))] = parent.pop(key)
        elif how == "repeated" and isinstance(parent, list):
            parent.insert(dice.randrange(len(parent) + 1), deepcopy(new))
        said.append(f"{'/'.join(map(str, path))[:80]} {how}")
    return tree, ", ".join(said)


def _other(value: Any, dice: Random, tree: Any, found: Sequence[Path]) -> tuple[Any, str]:
    """Another value for a place, and in a word what it is; some words are for the caller to do."""
    kind = dice.random()
    if kind < 0.08:
        return value, "twice"
    if kind < 0.18:
        return value, "gone"
    if kind < 0.23:
        return value, "renamed"
    if kind < 0.30:
        return value, "repeated"
    if kind < 0.33:
        return deep(dice), "nested"
    if kind < 0.42:
        return deepcopy(value_at(tree, dice.choice(found[1:]))), "from elsewhere"
    if isinstance(value, bool) or value is None:
        return dice.choice(NUMBERS), "another"
    if isinstance(value, int | float):
        near = [value + 1, value - 1, value * 2, -value, value / 2, float(value)] if abs(value) < 10**100 else []
        return dice.choice([*near, *NUMBERS]), "number"
    if isinstance(value, str):
        made = [value + "x", value[:-1], value.upper(), value + "/", "./" + value, "../" + value, value * 50, [value]]
        return dice.choice([*made, *TEXTS]), "text"
    if isinstance(value, list):
        made_lists: list[Any] = [[], value[:-1], value + value, value[::-1], [value], dict.fromkeys("ab", 1), None, 3]
        return dice.choice(made_lists), "list"
    if isinstance(value, dict):
        return dice.choice([{}, [value], list(value), {**value, "future": deep(dice)}, None, "x", 3]), "object"
    return dice.choice(NUMBERS), "another"


def as_json(tree: Any) -> bytes:
    """A tree as JSON, with the keys that are to be there twice, and what is nested deeply."""
    text = json.dumps(tree).replace(_SPELLED_TWICE, '"')
    return re.sub(_SPELLED_DEEP, _nested, text).encode()


def _nested(match: re.Match[str]) -> str:
    begin, end = ("[", "]") if match[2] == "l" else ('{"a":', "}")
    return begin * int(match[1]) + "1" + end * int(match[1])


def changed_json(data: bytes, dice: Random) -> tuple[bytes, str]:
    """JSON changed by its structure mostly, else by its bytes."""
    if dice.random() < 0.3:
        return damaged(data, dice)
    tree, said = changed_tree(json.loads(data), dice)
    return as_json(tree), said


ASKS = ["os system", "builtins eval", "builtins getattr", "torch load", "numpy load", "collections OrderedDict"]
ASKS += ["torch Size", "torch._utils _rebuild_tensor_v2", "torch FloatStorage", "builtins set", "_codecs encode"]
ASKS += ["deepspeed.x Y", "numpy.core.multiarray _reconstruct", "argparse Namespace", "builtins frozenset"]

LENGTH_1 = b"\x01" + bytes(7) + b"a"
OPERATIONS: list[Callable[[Random], bytes]] = [
    lambda dice: dice.choice(b"(02N\x88\x89]}))l.tdaesubQRo\x85\x86\x87\x8f\x90\x91\x92\x93\x94").to_bytes(1, "little"),
    lambda dice: b"c" + dice.choice(ASKS).replace(" ", "\n").encode() + b"\n",
    lambda dice: b"h" + dice.randbytes(1),
    lambda dice: b"q" + dice.randbytes(1),
    lambda dice: b"j" + dice.choice([b"\x00\x00\x00\x00", b"\xff\xff\xff\xff", dice.randbytes(4)]),
    lambda dice: b"r" + dice.choice([b"\x05\x00\x00\x00", b"\xff\xff\xff\x7f", dice.randbytes(4)]),
    lambda dice: b"K" + dice.randbytes(1),
    lambda dice: b"J" + dice.choice([b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", dice.randbytes(4)]),
    lambda dice: b"\x8a" + bytes([9]) + dice.randbytes(9),
    lambda dice: b"\x8b" + dice.choice([b"\xff\xff\xff\x7f", b"\x02\x00\x00\x00ab", b"\xff\xff\xff\xff"]),
    lambda dice: b"X" + dice.choice([b"\x01\x00\x00\x00a", b"\xff\xff\xff\x7f", b"\x03\x00\x00\x00cpu"]),
    lambda dice: dice.choice([b"\x8d", b"\x8e"]) + dice.choice([b"\xff" * 8, b"\xff" * 7 + b"\x7f", LENGTH_1]),
    lambda dice: b"I" + dice.choice([b"1", b"9" * 5000, b"01", b"-5", b"x"]) + b"\n",
    lambda dice: b"G" + dice.randbytes(8),
    lambda dice: b"\x95" + dice.choice([b"\xff" * 8, bytes(8), b"\x05" + bytes(7)]),
    lambda dice: b"\x80" + dice.randbytes(1),
    lambda dice: dice.choice([b"\x82\x01", b"\x97", b"\x96" + b"\x01" + bytes(7) + b"a", b"i", b"P1\n", b"\x84abcd"]),
]  # fmt: skip
"""Operations of a pickle, with arguments that may lie."""


def changed_pickle(stream: bytes, dice: Random) -> tuple[bytes, str]:
    """A pickle with other operations."""
    starts = [at for _, _, at in pickletools.genops(stream) if at is not None]
    parts = [stream[a:b] for a, b in zip(starts, [*starts[1:], len(stream)], strict=True)]
    said = []
    for _ in range(dice.choice([1, 1, 2, 3, 6])):
        at, other = dice.randrange(len(parts)), dice.randrange(len(parts))
        kind = dice.choice(["drop", "insert", "insert", "repeat", "swap", "replace", "argument", "argument", "block"])
        said.append(f"{kind} {at}")
        if kind == "drop" and len(parts) > 1:
            del parts[at]
        elif kind == "insert":
            parts.insert(at, dice.choice(OPERATIONS)(dice))
        elif kind == "repeat":
            parts[at:at] = [parts[at]] * dice.choice([1, 2, 50])
        elif kind == "swap":
            parts[at], parts[other] = parts[other], parts[at]
        elif kind == "replace":
            parts[at] = dice.choice(OPERATIONS)(dice)
        elif kind == "argument" and len(parts[at]) > 1:
            parts[at] = parts[at][:1] + damaged(parts[at][1:], dice, 1)[0]
        elif kind == "block":
            parts[at:at] = parts[min(at, other) : max(at, other)][:40]
    return b"".join(parts), ", ".join(said)


def repacked(data: bytes, change: Callable[[str, bytes], bytes]) -> bytes:
    """A zip archive of torch with other members, stored as they are."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(out, "w") as made:
        for each in archive.infolist():
            made.writestr(each.filename, change(each.filename, archive.read(each)))
    return out.getvalue()


def changed_zip(data: bytes, dice: Random) -> tuple[bytes, str]:
    """A zip archive whose directory, or whose headers of members, hold other numbers."""
    found = bytearray(data)
    heads = [at for mark in (b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06") for at in _all(data, mark)]
    said = []
    for _ in range(dice.choice([1, 1, 2, 4])):
        head = dice.choice(heads)
        at, size = head + dice.randrange(4, 46), dice.choice([1, 2, 4])
        number = dice.choice([0, 1, 8, 99, 2**16 - 1, 2**31, 2**32 - 1, dice.randrange(len(data)), len(data)])
        struct.pack_into("<I", room := bytearray(4), 0, number)
        found[at : at + size] = room[:size]
        said.append(f"{size} bytes at {at - head} of the header at {head}")
    return bytes(found[: len(data)]), ", ".join(said)


def _all(data: bytes, mark: bytes) -> list[int]:
    found, at = [], data.find(mark)
    while at >= 0:
        found.append(at)
        at = data.find(mark, at + 1)
    return found
